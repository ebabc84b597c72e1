"""Pages as Chromium shows them."""

import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

NAMED = {"button", "checkbox", "combobox", "image", "link", "slider", "table", "textbox"}


class Tab:
    """A browser's tab, by https://chromedevtools.github.io/devtools-protocol."""

    def __init__(self, socket):
        self.socket = socket
        self.sent = self.width = 0

    def send(self, method, **params):
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))

    def __call__(self, method, **params):
        """Send a command and wait for its answer; answers to what was only sent are checked on the way."""
        self.send(method, **params)
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            assert "error" not in message, message
            if message.get("id") == self.sent:
                return message["result"]

    def js(self, text):
        result = self("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition):
        end = time.monotonic() + 20
        while not self.js(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.01)

    def open(self, url, width, scheme="light"):
        """Show a page at a width in CSS pixels, to a reader who likes pages light or dark."""
        self.width = width
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.js("window.isLeft = true")  # of the document before, which may have the same address
        loads = "loaderId" in self("Page.navigate", url=url)
        there = f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        self.wait(f"{there} && !window.isLeft" if loads else there)

    def overflow(self):
        """By how many pixels the page is wider than the screen."""
        return self.js("document.documentElement.scrollWidth") - self.width

    def unspoken(self):
        """What a screen reader lacks: names, a main part, headings of which none is left out."""
        tree = [one for one in self("Accessibility.getFullAXTree")["nodes"] if not one["ignored"]]
        roles = [one["role"]["value"] for one in tree]
        pairs = zip(tree, roles, strict=True)
        lacking = [role for one, role in pairs if role in NAMED and not one["name"]["value"].strip()]
        if roles.count("main") != 1:
            lacking.append("main")
        levels = self.js("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
        if levels[0] != 1 or any(after > before + 1 for before, after in itertools.pairwise(levels)):
            lacking.append(f"headings {levels}")
        return lacking


@contextmanager
def new_tab(profile):
    """Start Chromium and give its tab; ``profile`` is an empty folder of its own."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE, text=True
    )
    try:
        found = next(filter(None, (re.search(r"listening on ws://(\S+?)/", line) for line in process.stderr)))
        with urllib.request.urlopen(f"http://{found[1]}/json") as answer:
            url = next(one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page")
        with connect(url, max_size=None) as websocket:
            yield Tab(websocket)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
