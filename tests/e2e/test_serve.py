"""`medsft serve` as those meet it who were invited, and those who were not."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from served import SECONDS, Served, make_run, start

aiohttp = pytest.importorskip("aiohttp", reason="medsft serve needs textual-serve")
pytest.importorskip("textual_serve", reason="medsft serve needs textual-serve")
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    make_run(folder, "triage-one")
    server = Served(folder)
    yield server
    server.process.terminate()
    server.process.communicate(timeout=SECONDS)


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
        yield session


async def status(client: Any, url: str, **headers: str) -> int:
    async with client.get(url, headers=headers, allow_redirects=False) as response:
        await response.read()
        return int(response.status)


async def socket_status(client: Any, url: str, **headers: str) -> int:
    """The HTTP status that a websocket is refused with, 101 when it is opened."""
    try:
        async with client.ws_connect(url.replace("http", "ws", 1), headers=headers):
            return 101
    except aiohttp.WSServerHandshakeError as error:
        return int(error.status)


async def read_to_end(page: Any) -> None:
    async for _ in page:
        pass


PARTS = ("", "ws", "static/js/textual.js", "static/page.js", "nothing")


async def test_the_address_has_a_token_that_is_hard_to_guess(served: Served) -> None:
    assert re.fullmatch(rf"http://127\.0\.0\.1:{served.port}/[A-Za-z0-9_-]{{43}}/", served.address)


@pytest.mark.parametrize("part", PARTS)
async def test_without_the_token_nothing_is_answered(served: Served, client: Any, part: str) -> None:
    root = f"http://127.0.0.1:{served.port}/"
    own = f"http://127.0.0.1:{served.port}"
    swapped = served.token[:-1] + ("A" if served.token[-1] != "A" else "B")
    wrong = ("x", swapped, served.token[:-1], f"{served.token}x", served.token.lower(), "%00")
    for before in ("", "/", *(f"{token}/" for token in wrong)):
        assert await status(client, f"{root}{before}{part}") == 403
        assert await socket_status(client, f"{root}{before}{part}", Origin=own) == 403
    assert await status(client, f"{root}?token={served.token}") == 403
    assert await status(client, f"{root}{part}", Cookie=f"token={served.token}", Authorization=f"token {served.token}") == 403


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another program on this machine
        {"Origin": "https://127.0.0.1:PORT"},
        {"Origin": "http://127.0.0.1:PORT.evil.example"},
        {"Host": "evil.example:PORT"},  # a foreign name that was made to mean this machine
        {"Host": "evil.example:PORT", "Origin": "http://evil.example:PORT"},
        {"Host": "localhost.evil.example:PORT", "Origin": "http://localhost.evil.example:PORT"},
        {"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"},
        {"Host": "127.0.0.1:PORT@evil.example", "Origin": "http://127.0.0.1:PORT@evil.example"},
        {"Host": ""},
    ],
)
async def test_a_foreign_page_is_refused_although_it_has_the_token(
    served: Served, client: Any, part: str, headers: dict[str, str]
) -> None:
    sent = {name: value.replace("PORT", str(served.port)) for name, value in headers.items()}
    assert await status(client, served.address + part, **sent) == 403
    assert await socket_status(client, served.address + part, **sent) == 403


async def test_the_page_is_answered_and_asks_for_nothing_from_elsewhere(served: Served, client: Any) -> None:
    async with client.get(served.address) as response:
        page, headers = await response.text(), response.headers
    assert response.status == 200
    assert "<title>medsft</title>" in page
    assert served.token not in page
    assert not re.search(r"https?:|//", page)
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    for found in re.findall(r'(?:src|href)="(static/[^"]+)"', page):
        assert await status(client, served.address + found) == 200
    async with client.get(f"{served.address}static/page.css") as response:
        style = await response.text()
    fonts = re.findall(r'url\("([^"]+)"\)', style)
    assert len(fonts) == 2
    for font in fonts:
        assert await status(client, f"{served.address}static/{font}") == 200
    assert await status(client, served.address.rstrip("/")) == 302


@pytest.mark.parametrize(
    "path",
    [
        *("static/", "static", "static/../server.py", "static/..%2f..%2fserver.py", "static/%2e%2e/server.py", "download/x"),
        *("static//etc/passwd", "static/%2fetc%2fpasswd", "../etc/passwd", "static/js/../../../server.py", "page.html%00"),
    ],
)
async def test_no_other_file_can_be_asked_for(served: Served, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    request = f"GET /{served.token}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    answer = (await asyncio.wait_for(reader.read(), SECONDS)).decode("utf-8", "replace")
    writer.close()
    assert answer.split()[1] in ("404", "403", "400"), answer[:200]
    assert "root:" not in answer


async def test_only_this_machine_can_connect(served: Served) -> None:
    listening = [c.laddr.ip for c in psutil.Process(served.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


@pytest.mark.parametrize(
    "query", ["width=0&height=1", "width=99999", "width=1;id", "height=-1", "width=1e3", "width=", "width=" + 5000 * "9"]
)
async def test_a_screen_of_no_size_is_refused(served: Served, client: Any, query: str) -> None:
    own = f"http://127.0.0.1:{served.port}"
    assert await socket_status(client, f"{served.address}ws?{query}", Origin=own) == 400
    assert await socket_status(client, f"{served.address}ws") == 400  # a browser always says where a page comes from
    assert served.screens() == []


@pytest.mark.parametrize("name", ["127.0.0.1:PORT", "LOCALHOST:PORT", "localhost:1"])  # a tunnel may begin at another port
async def test_each_page_has_a_process_which_ends_with_it(served: Served, client: Any, name: str) -> None:
    host = name.replace("PORT", str(served.port))
    socket_url = f"{served.address}ws?width=100&height=30".replace("http", "ws", 1)
    seen = b""
    async with client.ws_connect(socket_url, headers={"Host": host, "Origin": f"http://{host}"}) as page:
        for width, height in ((10**7, 10**7), ("x", []), (100, 30)):  # the first two are no sizes of a screen
            await page.send_json(["resize", {"width": width, "height": height}])
        while b"triage-one" not in seen:
            message = await page.receive(SECONDS)
            assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT)
            seen += message.data if isinstance(message.data, bytes) else b""
        assert served.screens()
    end = time.monotonic() + SECONDS
    while served.screens():
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_no_process_outlives_the_server(tmp_path: Path, client: Any, number: signal.Signals) -> None:
    make_run(tmp_path, "triage-one")
    server = Served(tmp_path)
    own = f"http://127.0.0.1:{server.port}"
    async with client.ws_connect(f"{server.address}ws".replace("http", "ws", 1), headers={"Origin": own}) as page:
        await page.receive(SECONDS)
        screens = server.screens()
        assert screens
        reading = asyncio.create_task(read_to_end(page))  # as a browser does
        before = time.monotonic()
        server.process.send_signal(number)
        out, err = await asyncio.to_thread(server.process.communicate, timeout=SECONDS)
        await reading
    assert time.monotonic() - before < 30  # aiohttp alone waits a minute for open pages
    assert server.process.returncode == (0 if number != signal.SIGKILL else -9)
    assert (out, "Traceback" in err) == ("", False)
    _, alive = psutil.wait_procs(screens, timeout=SECONDS)
    assert not alive


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = start(tmp_path, other.getsockname()[1])
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (5, "")
    assert re.search(r"medsft: --port \d+: .*\n    Take another one: --port N\n", err)
