"""A headless Chromium over its DevTools protocol: opens a page, evaluates scripts in it, takes screenshots."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """One page in a browser of its own. `errors` collects what the page reports as an error."""

    def __init__(self, url: str, folder: Path, *, width: int = 1280, height: int = 800, mobile: bool = False) -> None:
        assert PROGRAM is not None
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu-sandbox", "--enable-unsafe-swiftshader"]
        flags += ["--use-angle=swiftshader", "--no-first-run", "--disable-background-networking"]
        flags += [f"--user-data-dir={folder}", "--remote-debugging-port=0", f"--window-size={width},{height}"]
        self._process = subprocess.Popen([PROGRAM, *flags, "about:blank"], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        port = next(
            found[1] for line in self._process.stderr if (found := re.search(r"listening on ws://[\d.]+:(\d+)/", line))
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(entry for entry in json.load(answer) if entry["type"] == "page")
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Page.navigate", url=url)

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

    def press(self, label: str) -> None:
        """Click the button with this text."""
        found = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {json.dumps(label)})"
        self.wait_for(f"!!{found}")
        self.evaluate(f"{found}.click()")

    def screenshot(self) -> bytes:
        """Return a PNG of what is seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=30)
