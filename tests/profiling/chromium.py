# SPDX-License-Identifier: BSD-3-Clause
"""Chromium without a window, driven by the DevTools protocol through two pipes; the standard library alone."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio",
    "--force-device-scale-factor=1", "--remote-debugging-pipe",
)  # fmt: skip


def missing():
    """Why there is no browser here; empty if there is one."""
    return "" if _program() else "no chromium or google-chrome on the path"


def _program():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A browser with one page, as a context manager. Every wait has a limit."""

    def __init__(self, width=1000, height=800):
        self.profile = tempfile.mkdtemp(prefix="chromium")
        ours, theirs = _pipes()
        self.write, self.read = ours

        def move():  # the browser reads commands from 3 and answers on 4
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self.process = subprocess.Popen(
            [_program(), *FLAGS, f"--user-data-dir={self.profile}", f"--window-size={width},{height}", "about:blank"],
            preexec_fn=move,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in theirs:
            os.close(end)
        self.received, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.write)
        os.close(self.read)
        os.killpg(self.process.pid, signal.SIGKILL)  # its own session: the browser and its renderers
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, timeout=30, **parameters):
        """The result of a command; an AssertionError with the browser's words if it fails."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.write, json.dumps(command).encode() + b"\0")
        until = time.monotonic() + timeout
        while True:
            answer = self._message(until - time.monotonic())
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _message(self, timeout):
        until = time.monotonic() + timeout
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.read], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser did not answer in time")
            part = os.read(self.read, 1 << 20)
            if not part:
                raise ConnectionError("the browser has ended")
            self.received += part
        text, _, self.received = self.received.partition(b"\0")
        return json.loads(text)

    def open(self, path, drawn="performance.getEntriesByName('drawn').length > 0"):
        """Open a file, and wait until the script says that it is drawn."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until(f"document.readyState === 'complete' && ({drawn})")

    def until(self, expression, timeout=30):
        """Wait until JavaScript is true."""
        until = time.monotonic() + timeout
        while not self.js(expression):
            assert time.monotonic() < until, f"never true: {expression}; {self.complaints()}"
            time.sleep(0.02)

    def js(self, expression):
        """The value of JavaScript; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self):
        """Wait for what the page draws next."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def complaints(self):
        """Errors and warnings of the console, exceptions and refusals of the page's policy, since it was opened."""
        self.js("0")
        found = []
        for event in self.events:
            name, given = event.get("method"), event.get("params", {})
            if name == "Runtime.exceptionThrown":
                found.append(given["exceptionDetails"].get("exception", {}).get("description", str(given)))
            elif name == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
                found.append(given["entry"]["text"])
            elif name == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
                found.append(str(given["args"]))
        return found

    def size(self, width, height, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.settle()

    def media(self, kind="", **features):
        """Emulate "print" or a feature such as ``prefers_color_scheme="dark"``."""
        rows = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=kind, features=rows)
        self.settle()

    def mouse(self, kind, x, y, **more):
        """ "mouseMoved", "mousePressed", "mouseReleased" or "mouseWheel" at a place in the window."""
        more = {"button": "none", **more}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.settle()

    def drag(self, start, end, modifiers=0):
        left = {"button": "left", "buttons": 1, "modifiers": modifiers}
        self.mouse("mousePressed", *start, clickCount=1, **left)
        self.mouse("mouseMoved", *((a + b) / 2 for a, b in zip(start, end, strict=True)), **left)
        self.mouse("mouseMoved", *end, **left)
        self.mouse("mouseReleased", *end, clickCount=1, **left)

    def key(self, key, modifiers=0):
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)
        self.settle()

    def screenshot(self, path, whole=False):
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


def _pipes():
    """Our ends (write, read) and the browser's (read, write), all above 9, so that 3 and 4 are free to be theirs."""
    ends = [*os.pipe(), *os.pipe()]
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    their_read, our_write, our_read, their_write = high
    return (our_write, our_read), (their_read, their_write)
