"""The page of `osr serve`, in a browser: digits drawn with the mouse, photos dropped on it."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.datasets import MNIST
from websockets.sync.client import connect

from osr_lightning import save
from osr_lightning.checkpoint import build
from osr_lightning.deploy.serve.app import build_app
from osr_lightning.deploy.serve.backend import open_backend
from osr_lightning.facts import Facts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


class Tab:
    """A browser's tab, by https://chromedevtools.github.io/devtools-protocol."""

    def __init__(self, socket):
        self.socket = socket
        self.sent = 0

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

    def open(self, url, width):
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && !!document.querySelector('#examples button')")

    def answer(self):
        """What the page says once it has asked; what it says of a failure."""
        self.wait("state.textContent !== 'Nothing asked yet' && !result.hasAttribute('aria-busy')")
        return self.js("prediction.textContent || error.textContent")

    def click(self, text):
        self.js(f"[...document.querySelectorAll('button')].find((b) => b.textContent === '{text}').click()")

    def mouse(self, kind, x, y):
        self.send(
            "Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=1, clickCount=1
        )

    def draw(self, image):
        """Draw a stroke along each run of bright pixels of a row."""
        self.click("Clear")
        self.js("scrollTo(0, 0)")  # the answer was scrolled to
        left, top, width = self.js(
            "(({left, top, width}) => [left, top, width])(canvas.getBoundingClientRect())"
        )
        for row, values in enumerate(image):
            edges = np.flatnonzero(np.diff(np.pad((values > 127).astype(int), 1)))
            for begin, end in edges.reshape(-1, 2):
                y = top + (row + 0.5) * width / 28
                x0, x1 = (left + (at + 0.5) * width / 28 for at in (begin, end - 1))
                self.mouse("Pressed", x0, y)
                if x1 > x0:
                    self.mouse("Moved", x1, y)
                self.mouse("Released", x1, y)

    def drop(self, path):
        self.js("state.textContent = 'Nothing asked yet'")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=100, y=100, data=data)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
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


@contextmanager
def served(recogniser, folder):
    save(recogniser, folder / "any.ckpt")
    app = build_app(open_backend(str(folder / "any.ckpt"), device="cpu"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


RECIPE = {"sampler": "mc_dropout", "score": "expected_entropy", "num_samples": 4, "masks": "shared"}


def trained(data_dir):
    """A recogniser of real digits, after seconds of training."""
    torch.manual_seed(0)
    train = MNIST(data_dir)
    recogniser = build(RECIPE, Facts(tuple("0123456789"), 1, 28, (0.1307,), (0.3081,)))
    optimiser = torch.optim.Adam(recogniser.parameters(), 3e-3)
    recogniser.train()
    for batch in torch.randperm(19200).split(64):
        logits = recogniser.sampler.network(recogniser.standardise(train.data[batch][:, None]))
        torch.nn.functional.cross_entropy(logits, train.targets[batch]).backward()
        optimiser.step()
        optimiser.zero_grad()
    recogniser.eval()
    scores = recogniser.describe(train.data[-500:][:, None])["score/expected_entropy"]
    recogniser.threshold.fixed = scores.quantile(0.998).item()
    return recogniser


def test_digits_are_drawn_and_photos_dropped(tab, data_dir, tmp_path):
    test = MNIST(data_dir, train=False)
    images, labels = test.data[:20].numpy(), [str(label) for label in test.targets[:20].tolist()]
    photos = load_sample_images().images
    with served(trained(data_dir), tmp_path) as url:
        said = []
        for width, part in ((390, images[:10]), (1280, images[10:])):
            tab.open(url, width)
            tab.js("pen.value = 12")
            for image in part:
                tab.draw(image)
                tab.click("Recognise")
                said.append(tab.answer())
            assert tab.js("document.documentElement.scrollWidth") <= width
            assert tab.js("[bars.children.length, samples.children.length, seen.naturalWidth]") == [10, 4, 28]
            for number, photo in enumerate(photos):
                Image.fromarray(photo).save(tmp_path / f"{number}.jpg")
                tab.drop(tmp_path / f"{number}.jpg")
                assert tab.answer() == "unknown"
                assert tab.js("given.naturalWidth") == photo.shape[1]
    assert sum(a == b for a, b in zip(said, labels, strict=True)) >= 18, (said, labels)


def untrained(facts, **recipe):
    torch.manual_seed(0)
    recogniser = build(RECIPE | recipe, facts).eval()
    recogniser.threshold.fixed = 2.0
    return recogniser


def test_says_what_is_wrong_and_what_another_threshold_would_decide(tab, tmp_path):
    with served(untrained(Facts(tuple("0123456789"), 1, 28, (0.13,), (0.31,))), tmp_path) as url:
        tab.open(url, 1280)
        tab.click("Recognise")
        assert tab.answer() == "The canvas is empty: draw a digit on it first."
        (tmp_path / "<b>.png").write_text("none")
        tab.drop(tmp_path / "<b>.png")
        assert "Cannot read the image <b>.png" in tab.answer()
        tab.js("canvas.focus()")
        for key in (" ", "ArrowDown", "ArrowDown", "Enter"):  # a stroke by keyboard
            tab("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert tab.answer() == "unknown"
        for place, decided in ((0, "unknown"), (1000, tab.js("likeliest().class"))):
            tab.js(f"$('threshold').value = {place}; $('threshold').dispatchEvent(new Event('input'))")
            assert tab.js("verdict.textContent").endswith(f"it would be: {decided}.")


def test_draws_only_for_grey_digits_and_names_are_text(tab, tmp_path):
    facts = Facts(("<img src=x>", "cat"), 3, 32, (0.5,) * 3, (0.3,) * 3)
    with served(untrained(facts, sampler="single", num_samples=1), tmp_path) as url:
        tab.open(url, 390)
        assert tab.js("drawing.hidden && centring.hidden")
        assert tab.js("[...examples.children].map((b) => b.textContent)") == [
            "Noise",
            "Checkerboard",
            "Gradient",
        ]
        tab.click("Noise")
        assert tab.answer() in ("unknown", *facts.classes)
        assert tab.js("bars.textContent").startswith("<img src=x>")
        assert tab.js("[$('samples-part').hidden, bars.querySelectorAll('img').length]") == [True, 0]
