"""A headless Chromium driven over its debugging pipe: what a page did, what it asked for, and where its boxes lie."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.projects import chromium

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """Speaks the DevTools protocol: JSON messages that end in a NUL, on two pipes."""

    def __init__(self, to: int, came: int) -> None:
        self._to, self._came = to, came
        self._buffer, self._number, self._session, self._target = b"", 0, "", ""
        self.requests: list[str] = []  # every address asked for since the page was opened, answered or not
        self._events: list[str] = []

    def open(
        self,
        address: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        script: bool = True,
        policy: bool = True,
    ) -> None:
        """Load the page in a tab of its own and wait until it has loaded; without `script` none of the page's runs.

        Without `policy` the page's does not hold: what `value` starts goes on also where a sandbox forbids scripts.
        """
        if self._target:
            self._ask("Target.closeTarget", targetId=self._target)
        self._target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        self.requests, self._events = [], []
        for domain in ("Page", "Network", "Runtime"):
            self._ask(f"{domain}.enable")
        self.show(width=width, height=height, dark=dark)
        self._ask("Emulation.setScriptExecutionDisabled", value=not script)
        self._ask("Page.setBypassCSP", enabled=not policy)
        self._ask("Page.navigate", url=address)
        self._wait_for_load()

    def show(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """The tab's size in CSS pixels and its colours, from now on."""
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def _wait_for_load(self) -> None:
        while "Page.loadEventFired" not in self._events:
            self._take(self._read())

    def press(self, key: str) -> None:
        """Tab, Space or Enter, as somebody without a mouse does."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
        code, text = codes[key]
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    def focus(self, selector: str, *, most: int = 80) -> None:
        """Press Tab until the element that the selector finds has the focus."""
        for _ in range(most):
            self.press("Tab")
            if self.value(f"document.activeElement === document.querySelector({json.dumps(selector)})"):
                return
        raise AssertionError(f"{selector} cannot be reached by Tab")

    def follow(self, selector: str) -> None:
        """Reach the link or button by Tab, press Enter, and wait for the page that comes."""
        self.focus(selector)
        self._events = []
        self.press("Enter")
        self._wait_for_load()

    def write(self, selector: str, text: str) -> None:
        """Reach the field by Tab and type."""
        self.focus(selector)
        self._ask("Input.insertText", text=text)

    def value(self, script: str) -> Any:
        """What the expression comes to, in the page's own world; the page's policy does not hold for it."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, *, top: float = 0, height: int | None = None) -> bytes:
        """The page from `top` in CSS pixels on as PNG, base64 undone."""
        import base64

        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        shown = min(size["height"] - top, height or 16000)
        clip = {"x": 0, "y": top, "width": size["width"], "height": shown, "scale": 1}
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        said = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith("Target."):
            said["sessionId"] = self._session
        os.write(self._to, json.dumps(said).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._number:
                assert "result" in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("sessionId", "") == self._session:
            self._events.append(message.get("method", ""))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._came, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with `profile` as its folder, ended with the context."""
    path = chromium()
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    def place() -> None:
        # the protocol is spoken on descriptors 3 and 4; either may be one of the pipes' own numbers
        kept_in, kept_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(kept_in, 3)
        os.dup2(kept_out, 4)
        for number in (3, 4):  # where it is its own copy, it would be closed
            os.set_inheritable(number, True)

    process = subprocess.Popen(
        [path, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=place,
        close_fds=False,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
