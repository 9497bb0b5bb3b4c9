"""A headless Chromium over its DevTools protocol: opens a page, evaluates scripts in it, takes screenshots."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """One page in a browser of its own. `errors` collects what the page reports as an error."""

    def __init__(self, url: str, folder: Path, *, width: int = 1280, height: int = 800, mobile: bool = False) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._url = url
        self._folder = folder
        self._size = {"width": width, "height": height, "mobile": mobile, "deviceScaleFactor": 1}
        self._number = 0
        self._open = ExitStack()

    def __enter__(self) -> Chromium:
        assert PROGRAM is not None
        flags = ["--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"]
        flags += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={self._folder}"]
        command = [PROGRAM, *flags, "--remote-debugging-port=0", "about:blank"]
        with ExitStack() as opening:
            process = opening.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            opening.callback(process.terminate)
            assert process.stderr is not None
            announced = (re.search(r"listening on ws://[\d.]+:(\d+)/", line) for line in process.stderr)
            port = next(found[1] for found in announced if found)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(entry for entry in json.load(answer) if entry["type"] == "page")
            self._socket = opening.enter_context(connect(target["webSocketDebuggerUrl"], max_size=None))
            self._open = opening.pop_all()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", **self._size)
        self.call("Page.navigate", url=self._url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive before it are collected."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._collect(message.get("method"), message.get("params"))

    def _collect(self, method: str | None, event: Any) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] == "error":
            self.errors.append(json.dumps(event["args"])[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 60.0) -> Any:
        """Evaluate an expression until it is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            if time.monotonic() > end:
                text = self.evaluate("document.body.innerText")
                raise AssertionError(f"{script} is not true after {seconds} seconds; the page has: {text[:2000]}")
            time.sleep(0.3)
        return value

    def wait_for_text(self, text: str, *, seconds: float = 60.0) -> None:
        """Wait until the page shows a text."""
        self.wait_for(f"(document.body?.innerText ?? '').includes({json.dumps(text)})", seconds=seconds)

    def press(self, label: str) -> None:
        """Click the button with this text."""
        found = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {json.dumps(label)})"
        self.wait_for(f"!!{found}")
        self.evaluate(f"{found}.click()")

    def open_tab(self, label: str) -> None:
        """Press Enter on the tab with this text; viser's tabs heed no synthetic click."""
        found = f"[...document.querySelectorAll('[role=tab]')].find(t => t.innerText.trim() === {json.dumps(label)})"
        self.wait_for(f"!!{found}")
        self.evaluate(f"{found}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true}}))")

    def screenshot(self) -> bytes:
        """Return a PNG of what is seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
