"""The screens in a browser on this machine: textual_serve's server, for nobody but who has the address.

textual_serve alone answers every page of every site and every account of the machine. Here each path begins with a token that
is drawn at the start, so that page, files and websocket are found only by who was given the address. A token in the path is not
sent to other ports of localhost, as a cookie would be. `Host` must be this machine (or a foreign name could be made to mean it,
and its pages would be of the same origin) and `Origin` the page itself. Only the address 127.0.0.1 is listened on and printed:
for `localhost` a browser also tries ::1, where another account may listen.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import shlex
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import cast

from aiohttp import web
from textual_serve.server import Server

from medsft.errors import LaunchError
from medsft.tui.browser import is_screen

HOST = "127.0.0.1"
_TOKEN_BYTES = 32
_THIS_MACHINE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")
"""Any port: a tunnel may begin at another one than it ends at."""
_NUMBER = re.compile(r"[0-9]{1,5}")
_END_SECONDS = 5.0
"""For the screens to close when the server ends."""
_PAGE = Path(__file__).parent / "page"
_HEADERS = {
    # Nothing from elsewhere, even if a page had asked for it. The terminal makes its own style elements.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src 'self' data:; connect-src 'self' ws://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # a link in a log must not carry the token away
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class BrowserServer(Server):
    """Serves the screens of one command. Each page that is opened has a process of its own."""

    def __init__(
        self, words: Sequence[str], *, port: int, announce: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        """`words` is the command, `announce` gets the address when it can be opened, `tell` what goes wrong."""
        super().__init__(f"exec {shlex.join(words)}", host=HOST, port=port, title="medsft")
        self._announce, self._tell = announce, tell
        self._token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._files = {"": _PAGE / "page.html", **_files_below(Path(self.statics_path)), **_files_below(_PAGE)}
        self._sessions: set[asyncio.Task[object]] = set()

    @property
    def address(self) -> str:
        """Where the page is, token included."""
        return f"http://{HOST}:{self.port}/{self._token}/"

    def serve(self, debug: bool = False) -> None:
        """Serve until Ctrl-C or SIGTERM. Raises `LaunchError` when the port cannot be had."""
        self.initialize_logging()
        try:
            asyncio.run(self._serve())
        except OSError as error:
            raise LaunchError(f"--port {self.port}: {error.strerror or error}", hint="Take another one: --port N") from None

    async def _serve(self) -> None:
        runner = web.AppRunner(await self._make_app(), access_log=None, shutdown_timeout=_END_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port).start()
            ended = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, ended.set)
            self._announce(self.address)  # not before the port is ours: another account might have it
            await ended.wait()
        finally:
            await runner.cleanup()

    def initialize_logging(self) -> None:
        """Pass on what the libraries say. Their tracebacks would show the values of variables, and those may be of a record."""
        logging.basicConfig(level=logging.WARNING, handlers=[_Teller(self._tell)])

    async def _make_app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.on_response_prepare.append(_add_headers)
        app.on_shutdown.append(self.on_shutdown)
        app.add_routes(
            [
                web.get("/{token}", self._to_page),
                web.get("/{token}/ws", self.handle_websocket),
                web.get("/{token}/{name:.*}", self._file),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer nobody else. All refusals are the same, before it is looked what was asked for."""
        first = request.path.split("/")[1] if "/" in request.path else ""
        invited = hmac.compare_digest(first.encode("utf-8", "replace"), self._token.encode())
        if not invited or not _from_this_machine(request):
            raise web.HTTPForbidden(text="Open the address that `medsft serve` has printed, on this machine.\n")
        return await handler(request)

    async def _to_page(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"/{self._token}/")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        """Answer with a file that was there at the start: what is not in that list cannot be asked for."""
        path = self._files.get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path)

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Connect a page to a process of its own, until one of them ends."""
        sizes = [request.query[name] for name in ("width", "height") if name in request.query]
        numbers = [int(size) if _NUMBER.fullmatch(size) else 0 for size in sizes]
        if len(request.headers.getall("Origin", ())) != 1 or not is_screen(*numbers):
            raise web.HTTPBadRequest
        session = cast("asyncio.Task[object]", asyncio.current_task())  # aiohttp runs each handler in a task
        self._sessions.add(session)
        try:
            return await super().handle_websocket(request)
        finally:
            self._sessions.discard(session)

    async def on_shutdown(self, app: web.Application) -> None:
        """Close the screens: aiohttp would wait a minute for them."""
        for session in self._sessions:
            session.cancel()
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=_END_SECONDS)


def _from_this_machine(request: web.Request) -> bool:
    hosts = request.headers.getall("Host", ())
    if len(hosts) != 1 or not _THIS_MACHINE.fullmatch(hosts[0].lower()):
        return False
    return all(origin.lower() == f"http://{hosts[0].lower()}" for origin in request.headers.getall("Origin", ()))


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    host = request.headers.get("Host", "")
    known = host if _THIS_MACHINE.fullmatch(host.lower()) else HOST
    response.headers.update({name: value.replace("{host}", known) for name, value in _HEADERS.items()})


def _files_below(folder: Path) -> dict[str, Path]:
    return {f"static/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}


class _Teller(logging.Handler):
    """Tells messages without their tracebacks."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(f"medsft serve: {record.getMessage()}")
