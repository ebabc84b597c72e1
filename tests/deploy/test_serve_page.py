"""The page of `osr serve`, in a browser: digits drawn with the mouse, photos dropped on it."""

import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.datasets import MNIST

from osr_lightning import save
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.load import load
from osr_lightning.deploy.serve.app import build_app
from osr_lightning.deploy.serve.open import open_backend
from osr_lightning.recogniser.checkpoint import build


class ServedPage:
    """The page of `osr serve` in a tab; ``wait`` and ``js`` are the tab's."""

    def __init__(self, tab):
        self.tab, self.js, self.wait = tab, tab.js, tab.wait

    def open(self, url, width):
        self.tab.open(url, width)
        self.wait("!!document.querySelector('#examples button')")

    def answer(self):
        """What the page says once it has asked; what it says of a failure."""
        self.wait("state.textContent !== 'Nothing asked yet' && !result.hasAttribute('aria-busy')")
        return self.js("prediction.textContent || error.textContent")

    def click(self, text):
        self.js(f"[...document.querySelectorAll('button')].find((b) => b.textContent === '{text}').click()")

    def press_enter(self):
        self.js("state.textContent = 'Nothing asked yet'")
        for kind in ("rawKeyDown", "char", "keyUp"):
            self.tab("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r")

    def mouse(self, kind, x, y):
        self.tab.send(
            "Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=1, clickCount=1
        )

    def draw(self, image):
        """Draw a stroke along each run of bright pixels of a row."""
        self.click("Clear")
        self.js("scrollTo(0, 0)")  # the answer was scrolled to
        left, top, width = self.js(
            "(({left, top, width}) => [left, top, width])(canvas.getBoundingClientRect())"
        )
        strokes = 0
        for row, values in enumerate(image):
            edges = np.flatnonzero(np.diff(np.pad((values > 127).astype(int), 1)))
            for begin, end in edges.reshape(-1, 2):
                y = top + (row + 0.5) * width / 28
                x0, x1 = (left + (at + 0.5) * width / 28 for at in (begin, end - 1))
                self.mouse("Pressed", x0, y)
                if x1 > x0:
                    self.mouse("Moved", x1, y)
                self.mouse("Released", x1, y)
                strokes += 1
        self.wait(f"strokes.length === {strokes} && pointer === null")  # clicks may overtake the mouse

    def drop(self, path):
        self.js("state.textContent = 'Nothing asked yet'")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tab("Input.dispatchDragEvent", type=kind, x=100, y=100, data=data)


@pytest.fixture
def page(tab):
    return ServedPage(tab)


@contextmanager
def served(recogniser, folder):
    save(recogniser, folder / "any.ckpt")
    app = build_app(open_backend(load(folder / "any.ckpt")))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
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
    recogniser = build(RECIPE, DataSpec(tuple("0123456789"), 1, 28, (0.1307,), (0.3081,)))
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


def test_digits_are_drawn_and_photos_dropped(page, data_dir, tmp_path):
    test = MNIST(data_dir, train=False)
    images, labels = test.data[:20].numpy(), [str(label) for label in test.targets[:20].tolist()]
    photos = load_sample_images().images
    with served(trained(data_dir), tmp_path) as url:
        said = []
        for width, part in ((390, images[:10]), (1280, images[10:])):
            page.open(url, width)
            page.js("pen.value = 12")
            for image in part:
                page.draw(image)
                page.click("Recognise")
                said.append(page.answer())
            assert page.tab.overflow() <= 0
            assert page.js("[bars.children.length, samples.children.length]") == [10, 4]
            page.tab.wait("seen.naturalWidth == 28")
            for number, photo in enumerate(photos):
                Image.fromarray(photo).save(tmp_path / f"{number}.jpg")
                page.drop(tmp_path / f"{number}.jpg")
                assert page.answer() == "unknown"
                page.tab.wait(f"given.naturalWidth == {photo.shape[1]}")  # browsers decode when they like
    assert sum(a == b for a, b in zip(said, labels, strict=True)) >= 18, (said, labels)


def untrained(spec, **recipe):
    torch.manual_seed(0)
    recogniser = build(RECIPE | recipe, spec).eval()
    recogniser.threshold.fixed = 2.0
    return recogniser


def test_says_what_is_wrong_and_what_another_threshold_would_decide(page, tmp_path):
    with served(untrained(DataSpec(tuple("0123456789"), 1, 28, (0.13,), (0.31,))), tmp_path) as url:
        page.open(url, 1280)
        page.click("Recognise")
        assert page.answer() == "The canvas is empty: draw a digit on it first."
        (tmp_path / "<b>.png").write_text("none")
        page.drop(tmp_path / "<b>.png")
        assert "Cannot read the image <b>.png" in page.answer()
        page.js("canvas.focus()")
        for key in (" ", "ArrowDown", "ArrowDown", "Enter"):  # a stroke by keyboard
            page.tab("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert page.answer() == "unknown"
        for place, decided in ((0, "unknown"), (1000, page.js("likeliest().class"))):
            page.js(f"$('threshold').value = {place}; $('threshold').dispatchEvent(new Event('input'))")
            assert page.js("verdict.textContent").endswith(f"it would be: {decided}.")


def test_pictures_of_classes_are_buttons_with_their_names(page, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    recogniser = untrained(DataSpec((name, "cat", "dog"), 3, 32, (0.5,) * 3, (0.3,) * 3), sampler="single")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    recogniser.examples = {"dog": pixels[0], name: pixels[1]}
    expected = recogniser.predict(list(pixels.transpose(0, 2, 3, 1)))
    with served(recogniser, tmp_path) as url:
        for width in (390, 1280):
            page.open(url, width)
            assert page.tab.unspoken() == []
            assert page.js("$('known-examples').hidden") is False
            assert page.js("[...pictures.querySelectorAll('button > img')].map((one) => one.alt)") == [
                name,
                "dog",
            ]
            assert page.js("[...pictures.querySelectorAll('span')].map((one) => one.textContent)") == [
                name,
                "dog",
            ]
            page.wait("[...pictures.querySelectorAll('img')].every((one) => one.naturalWidth === 32)")
            assert page.js("[...examples.children].map((b) => b.textContent)") == ["Noise", "Checkerboard"]
            assert page.tab.overflow() <= 0
            page.js("pictures.lastElementChild.focus()")
            page.press_enter()
            assert page.answer() == expected[0].label
            assert page.js("answer.row.score") == pytest.approx(expected[0].score, rel=1e-9)
            page.tab.wait("given.naturalWidth === 32")


def test_grey_digits_have_their_own_pictures(page, tmp_path):
    recogniser = untrained(DataSpec(tuple("0123456789"), 1, 28, (0.13,), (0.31,)))
    recogniser.examples = {"3": np.full((1, 28, 28), 200, np.uint8)}
    with served(recogniser, tmp_path) as url:
        page.open(url, 1280)
        assert page.js("[drawing.hidden, pictures.children.length, examples.children.length]") == [
            False,
            1,
            2,
        ]
        page.js("pictures.firstElementChild.click()")
        page.answer()
        assert page.js("strokes.length") == 0  # nothing was drawn


def test_draws_only_for_grey_digits_and_names_are_text(page, tmp_path):
    spec = DataSpec(("<img src=x>", "cat"), 3, 32, (0.5,) * 3, (0.3,) * 3)
    with served(untrained(spec, sampler="single", num_samples=1), tmp_path) as url:
        page.open(url, 390)
        assert page.js("drawing.hidden && centring.hidden")
        assert page.js("$('known-examples').hidden")
        assert page.js("[...examples.children].map((b) => b.textContent)") == [
            "Noise",
            "Checkerboard",
            "Gradient",
        ]
        page.click("Noise")
        assert page.answer() in ("unknown", *spec.classes)
        assert page.js("bars.textContent").startswith("<img src=x>")
        assert page.js("[$('samples-part').hidden, bars.querySelectorAll('img').length]") == [True, 0]
