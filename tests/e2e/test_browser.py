"""`medsft serve` in a real browser without a window: Chromium, spoken to in its own protocol (DevTools)."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from served import SECONDS, Served, make_run

aiohttp = pytest.importorskip("aiohttp", reason="medsft serve needs textual-serve")
pytest.importorskip("textual_serve", reason="medsft serve needs textual-serve")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
FLAGS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-dev-shm-usage", "--window-size=1000,700"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-gpu", "--disable-3d-apis"),
)


class Page:
    """A page of the browser: what it asked for, what it was sent, and keys to press."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._session: str | None = None
        self._last = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.received = b""
        self.listener = asyncio.create_task(self._listen())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._answers[self._last] = asyncio.get_running_loop().create_future()
        await self._connection.send_json(message)
        answer = await asyncio.wait_for(self._answers[self._last], SECONDS)
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def _listen(self) -> None:
        async for message in self._connection:
            record = message.json()
            if "id" in record:
                self._answers[record["id"]].set_result(record)
                continue
            what, data = record["method"], record.get("params", {})
            if what == "Network.requestWillBeSent":
                self.requests.append(data["request"]["url"])
            elif what == "Network.webSocketCreated":
                self.requests.append(data["url"])
            elif what == "Network.webSocketFrameReceived" and data["response"]["opcode"] == 2:
                self.received += base64.b64decode(data["response"]["payloadData"])
            elif what == "Runtime.exceptionThrown":
                self.errors.append(str(data["exceptionDetails"]))
            elif what == "Log.entryAdded" and data["entry"]["level"] == "error":
                self.errors.append(data["entry"]["text"])

    async def open(self, address: str) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)

    async def value(self, script: str) -> Any:
        return (await self.call("Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")

    async def press(self, key: str, code: int = 0) -> None:
        """Press a key that writes its name, or one that has a code instead."""
        typed = {"windowsVirtualKeyCode": code} if code else {"text": key}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **typed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def lit(self) -> float:
        """The share of the picture that is not background."""
        image = pytest.importorskip("PIL.Image")
        shot = await self.call("Page.captureScreenshot", format="png")
        picture = image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("L")
        counts = picture.histogram()
        return sum(counts[90:]) / sum(counts)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"{what}: {self.errors} {self.received[-500:]!r}"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """Start a browser with a profile of its own."""
    assert CHROMIUM is not None
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    environment = {**os.environ, "HOME": str(folder)}
    process = await asyncio.create_subprocess_exec(
        *(CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", "about:blank"),
        stdout=subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment, limit=1 << 20,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        address = ""
        while "DevTools listening on " not in address:
            line = await asyncio.wait_for(process.stderr.readline(), SECONDS)
            assert line, "the browser ended"
            address = line.decode()
        drain = asyncio.create_task(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address.split()[-1], max_msg_size=0) as connection,
        ):
            page = Page(connection)
            yield page
            page.listener.cancel()
        drain.cancel()
    finally:
        process.kill()
        await process.wait()


@pytest.mark.timeout(280)
async def test_the_runs_are_drawn_and_take_keys_and_nothing_leaves_the_machine(tmp_path: Path) -> None:
    older, newer = make_run(tmp_path, "triage-one"), make_run(tmp_path, "triage-two")
    server = Served(tmp_path)
    try:
        async with browser(tmp_path) as page:
            await page.open(server.address)
            await page.until(lambda: b"triage-one" in page.received, "the runs did not come")
            end = time.monotonic() + SECONDS
            while await page.lit() < 0.002:
                assert time.monotonic() < end, "nothing was drawn"
            assert await page.value("document.title") == "medsft"
            assert await page.value("document.fonts.check('16px \"Roboto Mono\"')") is True
            await page.press("ArrowDown", 40)  # the table has the focus, and not only the screen
            await page.press("d")
            await page.until(lambda: b"Delete this run?" in page.received, "the key did not come")
            await page.press("y")
            await page.until(lambda: not older.path.exists(), "the run is still there")
            assert newer.path.exists()
            assert page.errors == []
            await page.press("q")
            end = time.monotonic() + SECONDS
            while not await page.value("document.body.classList.contains('-closed')"):
                assert time.monotonic() < end, "the page was not told the end"
                await asyncio.sleep(0.05)
            assert "ended" in await page.value("document.getElementById('closed').innerText")
            assert [url for url in page.requests if urlsplit(url).scheme not in ("data", "blob")]
            for url in page.requests:
                parts = urlsplit(url)
                assert parts.scheme in ("data", "blob") or parts.netloc == f"127.0.0.1:{server.port}", url
    finally:
        server.process.terminate()
        server.process.communicate(timeout=SECONDS)
