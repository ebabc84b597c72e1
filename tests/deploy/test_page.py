"""`osr export --page`: a folder that any web host serves, and what Chromium makes of it."""

import base64
import functools
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tarfile
import threading
import zlib
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from recognisers import SHARED, SPEC, make, pictures

from osr_lightning import load, save
from osr_lightning.__main__ import main
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.page import runtime
from osr_lightning.images.pixels import prepared
from osr_lightning.recogniser.rows import class_cells
from osr_lightning.scoring.calibration import Calibration
from osr_lightning.scoring.p_values import p_values

# in place of onnxruntime-web: the brighter, the stranger; of known ones, the brightest plane is the class
STAND_IN = """/*! ONNX Runtime Web v1.30.0 */
export const env = { wasm: {} };
export class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data, dims }); }
}
export const InferenceSession = {
  async create(graph, { executionProviders }) {
    if (!(graph instanceof Uint8Array) || executionProviders[0] !== "wasm") throw new Error("no graph");
    if (env.wasm.numThreads !== 1 || env.wasm.wasmBinary.byteLength !== 8) throw new Error("no runtime");
    return { run: async ({ images: { type, data, dims } }) => {
      if (type !== "uint8" || data.length !== dims.reduce((a, b) => a * b)) throw new Error("no image");
      const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
      const count = dims[2] * dims[3];
      const planes = [0, 1, 2].map((at) => mean(data.subarray(at * count, (at + 1) * count)));
      const best = planes.indexOf(Math.max(...planes)), score = mean(data) / 255;
      const shares = [0, 1, 2].map((at) => (at === best ? 0.5 : 0.25));
      return {
        prediction: { data: BigInt64Array.of(score > 0.5 ? 3n : BigInt(best)) },
        score: { data: Float64Array.of(score) },
        confidence: { data: Float64Array.of(0.5) },
        probabilities: { data: Float64Array.from(shares) },
      };
    } };
  },
};
"""
NAMES = ("<img src=x onerror=alert(1)>", "dog", "a,b\n=c")
KNOWN = tuple(np.linspace(0, 0.5, 40).tolist())


def stand_in(folder):
    """What `--page_runtime` takes, without what it is for."""
    (folder / "dist").mkdir(parents=True)
    (folder / "dist" / runtime.SCRIPT).write_text(STAND_IN)
    (folder / "dist" / runtime.BINARY).write_bytes(b"\0asm\1\0\0\0")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    recogniser = make(SHARED, "entropy", spec=SPEC._replace(classes=NAMES))
    recogniser.examples = {"dog": pictures(1).numpy()[0]}
    record = Calibration(0.5, "known_quantile", 0.05, "here", False, 40, "some", known_scores=KNOWN)
    recogniser.threshold.records["entropy"] = record
    path = tmp_path_factory.mktemp("page") / "any.ckpt"
    save(recogniser, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint):
    """A page whose graph nobody runs."""
    given = stand_in(checkpoint.parent / "given")
    words = ["export", "--ckpt_path", checkpoint, "--page", checkpoint.parent / "page"]
    assert main([*map(str, words), "--page_runtime", str(given)]) == 0
    return checkpoint.parent / "page"


@contextmanager
def hosted(folder):
    """The address of a host that serves a folder's files and knows nothing else."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class StaticPage:
    """The page in a tab; ``wait`` and ``js`` are the tab's."""

    def __init__(self, tab):
        self.tab, self.js, self.wait = tab, tab.js, tab.wait

    def open(self, url, width=1280, scheme="light"):
        """Show it, and keep what its policy stops."""
        keep = "(event) => (window.stopped ||= []).push(event.violatedDirective)"
        told = f"addEventListener('securitypolicyviolation', {keep})"
        script = self.tab("Page.addScriptToEvaluateOnNewDocument", source=told)
        self.tab.open(url, width, scheme)
        self.tab("Page.removeScriptToEvaluateOnNewDocument", **script)
        self.wait("!!model || !error.hidden")

    def give(self, path):
        """Drop a file, and read what is said of it."""
        self.js("state.textContent = 'Nothing asked yet'")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tab("Input.dispatchDragEvent", type=kind, x=100, y=100, data=data)
        self.wait("state.textContent !== 'Nothing asked yet' && !result.hasAttribute('aria-busy')")
        return self.js("prediction.textContent || error.textContent")

    def key(self, key, code, text=""):
        for kind in ("rawKeyDown", *(["char"] if text else []), "keyUp"):
            self.tab("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def prepared(self, array, spec):
        """What the page makes of pixels ``(C, H, W)``."""
        channels, height, width = array.shape
        return self._planes(
            f"prepared({{ channels: {channels}, height: {height}, width: {width}, values: "
            f"{_bytes(array.tobytes())} }}, {_told(spec)})",
            spec,
        )

    def read(self, path, spec):
        """What the page makes of a file."""
        blob = f"new Blob([{_bytes(path.read_bytes())}])"
        return self._planes(f"decoded({blob}, 'x').then((image) => prepared(image, {_told(spec)}))", spec)

    def _planes(self, expression, spec):
        found = self.js(f"Promise.resolve({expression}).then((values) => Array.from(values))")
        return np.array(found).reshape(spec.input_shape)


def _bytes(content):
    return f"Uint8Array.from(atob('{base64.b64encode(content).decode()}'), (char) => char.charCodeAt(0))"


def _told(spec):
    names = ("channels", "image_size", "resize", "interpolation")
    return json.dumps({name: getattr(spec, name) for name in names})


@pytest.fixture
def page(tab):
    return StaticPage(tab)


# pixels ----------------------------------------------------------------------------------------------


def spec_of(channels, size, resize=None, interpolation="bilinear"):
    return DataSpec(("a", "b"), channels, size, (0.5,) * channels, (0.5,) * channels, resize, interpolation)


def apart(found, expected):
    """The most levels by which two images differ."""
    return int(np.abs(found.astype(int) - expected).max())


SHAPES = [
    ((3, 28, 28), spec_of(3, 28)),
    ((3, 61, 37), spec_of(1, 28)),
    ((3, 200, 151), spec_of(3, 32)),
    ((1, 5, 7), spec_of(3, 20)),
    ((3, 9, 300), spec_of(1, 1)),
    ((3, 61, 80), spec_of(3, 32, 36)),
    ((3, 37, 23), spec_of(3, 40, 45, "bicubic")),
    ((3, 150, 99), spec_of(1, 31, 40, "bicubic")),
    ((1, 64, 90), spec_of(3, 33, 33, "lanczos")),
    ((3, 7, 130), spec_of(3, 8, 9, "bicubic")),
    ((3, 131, 7), spec_of(1, 8, 9)),
]


def test_pixels_are_resized_as_by_python_to_the_last_bit(page, folder):
    rng = np.random.default_rng(0)
    with hosted(folder) as url:
        page.open(url)
        for shape, spec in SHAPES:
            for image in (rng.integers(0, 256, shape, np.uint8), rng.integers(0, 2, shape, np.uint8) * 255):
                expected = prepared(image.transpose(1, 2, 0), spec)
                assert apart(page.prepared(image, spec), expected) == 0, (shape, spec)


@pytest.mark.parametrize("spec", [spec_of(3, 5), spec_of(1, 4, 5, "bicubic")])
def test_what_is_many_times_finer_is_averaged_down_first(page, folder, spec):
    image = np.random.default_rng(1).integers(0, 256, (3, 245, 330), np.uint8)
    with hosted(folder) as url:
        page.open(url)
        assert page.js("smallerBy(330, 245, 5)") == 3
        found = page.prepared(image, spec)
    assert apart(found, prepared(image.transpose(1, 2, 0), spec)) == 0


def test_files_are_decoded_as_by_python_within_a_level(page, folder, tmp_path):
    rng = np.random.default_rng(2)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 4), np.uint8)).resize(
        (80, 60), Image.Resampling.BICUBIC
    )
    colour, grey = smooth.convert("RGB"), smooth.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for before, after in ((b"rXYZ", b"none"), (b"bXYZ", b"rXYZ"), (b"none", b"bXYZ")):
        profile = profile.replace(before, after)  # who heeds it has red for blue
    clear = colour.quantize(20)
    for name, image, options in (
        ("colour.png", colour, {}),
        ("grey.png", grey, {}),
        ("bits.png", grey.convert("1"), {}),
        ("transparent.png", smooth, {}),
        ("grey_alpha.png", smooth.convert("LA"), {}),
        ("palette.png", clear, {"transparency": 3}),
        ("profile.png", colour, {"icc_profile": profile}),
        ("photo.jpg", colour, {"quality": 90}),
        ("fine.jpg", colour, {"quality": 95, "subsampling": 0}),
        ("grey.jpg", grey, {"quality": 90}),
        ("turned.jpg", colour, {"exif": exif, "quality": 90}),
        ("lossless.webp", colour, {"lossless": True}),
        ("still.gif", clear, {}),
        ("plain.bmp", colour, {}),
    ):
        image.save(tmp_path / name, **options)
    with hosted(folder) as url:
        page.open(url)
        for path in sorted(tmp_path.iterdir()):
            for spec in (spec_of(3, 20), spec_of(1, 30, 34, "bicubic")):
                found = page.read(path, spec)
                assert apart(found, prepared(path, spec)) <= 1, path.name


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(pixels, kind, interlaced):
    """A PNG file of pixels ``(H, W, C)`` uint8 or uint16, whose rows have each of the filters in turn."""
    height, width, channels = pixels.shape
    step = channels * pixels.itemsize
    rows = []
    for left, top, right, down in PASSES if interlaced else [(0, 0, 1, 1)]:
        above = None
        for row in pixels[top::down, left::right].astype(pixels.dtype.newbyteorder(">")):
            up = np.frombuffer(row.tobytes(), np.uint8).astype(int)
            above, up = up, np.zeros_like(up) if above is None else above
            before, corner = (np.pad(line, (step, 0))[: len(line)] for line in (above, up))
            guesses = np.stack([before, up, corner])
            paeth = np.take_along_axis(guesses, np.abs(before + up - corner - guesses).argmin(0)[None], 0)[0]
            filters = [0 * up, before, up, (before + up) // 2, paeth]
            number = len(rows) % len(filters)
            rows.append(bytes([number]) + (above - filters[number]).astype(np.uint8).tobytes())

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    packed = zlib.compress(b"".join(rows))
    head = struct.pack(">2I5B", width, height, 8 * pixels.itemsize, kind, 0, 0, interlaced)
    parts = [(b"IHDR", head), (b"IDAT", packed[:50]), (b"IDAT", packed[50:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_deep_and_transparent_pngs_have_the_pixels_that_they_have_in_python(page, folder, tmp_path):
    rng = np.random.default_rng(3)
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        for interlaced in (False, True):
            pixels = rng.integers(0, 65536, (13, 27, channels), np.uint16)
            (tmp_path / f"{kind}_{interlaced}.png").write_bytes(png(pixels, kind, interlaced))
    (tmp_path / "8.png").write_bytes(png(rng.integers(0, 256, (13, 27, 4), np.uint8), 6, False))
    exif, deep = Image.Exif(), Image.fromarray(rng.integers(0, 65536, (13, 27), np.uint16))
    for way in range(1, 9):
        exif[0x0112] = way
        deep.save(tmp_path / f"way_{way}.png", exif=exif)
    with hosted(folder) as url:
        page.open(url)
        for path in sorted(tmp_path.iterdir()):
            for spec in (spec_of(3, 13, 13), spec_of(1, 30, 34, "bicubic")):
                assert apart(page.read(path, spec), prepared(path, spec)) == 0, path.name
        whole = (tmp_path / "way_1.png").read_bytes()
        (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
        assert page.give(tmp_path / "half.png").startswith("half.png is no image that this browser can read:")
        (tmp_path / "large.png").write_bytes(whole[:16] + struct.pack(">2I", 70000, 1) + whole[24:])
        assert page.give(tmp_path / "large.png").startswith("large.png has 70000 ")


# the page --------------------------------------------------------------------------------------------


def plain(path, colour):
    Image.new("RGB", (30, 30), colour).save(path)
    return path


def test_says_what_it_knows_and_what_the_graph_answers(page, folder, tmp_path):
    names, blue = class_cells(NAMES), plain(tmp_path / "blue.png", (40, 60, 200))
    with hosted(folder) as url:
        for width, scheme in ((390, "dark"), (1280, "light")):
            page.open(url, width, scheme)
            assert "knows 3 classes (<img src=x" in page.js("about.textContent")
            assert page.js("[note.hidden, camera.hidden, drawing.hidden]") == [False, False, True]
            assert page.give(blue) == names[2]
            score = float(np.mean((40, 60, 200))) / 255
            assert page.js("answer.row.score") == pytest.approx(score)
            record = load(folder / "model.onnx").threshold.record
            assert page.js("answer.row.p_value") == pytest.approx(float(p_values(record, np.array(score))))
            assert "look as odd as this one" in page.js("odd.textContent")
            assert (
                page.js("[...bars.querySelectorAll('span:first-child')].map((one) => one.textContent)")
                == names
            )
            assert page.give(plain(tmp_path / "white.png", (255, 255, 255))) == "unknown"
            page.js("threshold === null && ($('threshold').value = 1000, $('threshold').oninput())")
            assert page.js("verdict.textContent").endswith(f"it would be: {names[0]}.")
            assert page.tab.overflow() <= 0
            page.wait("seen.naturalWidth === 20")
        page.js("state.textContent = 'Nothing asked yet'")
        page.js(
            f"(async () => {{ const data = new DataTransfer(), image = {_bytes(blue.read_bytes())};"
            "data.items.add(new File([image], 'a.png', { type: 'image/png' }));"
            "document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data })); })()"
        )
        page.wait("state.textContent === 'The answer' && prediction.textContent !== 'unknown'")
        (tmp_path / "<b>.png").write_text("none")
        assert page.give(tmp_path / "<b>.png").startswith("<b>.png is no image that this browser can read:")
        assert page.js("document.querySelectorAll('main b, main img[src=x]').length") == 0
        assert page.js("window.stopped || []") == []
        loaded = page.js("performance.getEntriesByType('resource').map((one) => one.name)")
        assert {one for one in loaded if not one.startswith((url, "data:", "blob:"))} == set()
        assert page.js("fetch('https://example.org').then(() => 'sent', () => 'stopped')") == "stopped"


def test_the_keyboard_reaches_everything_by_its_name(page, folder):
    with hosted(folder) as url:
        page.open(url)
        reached = []
        for _ in range(6):
            page.key("Tab", 9)
            reached.append(
                page.js(
                    "document.activeElement.id || document.activeElement.title || "
                    "document.activeElement.textContent"
                )
            )
        assert reached[:5] == ["file", "watch", "dog", "Noise", "Checkerboard"]
        tree = page.tab("Accessibility.getFullAXTree")["nodes"]
        named = {
            (one["role"]["value"], one["name"]["value"])
            for one in tree
            if not one["ignored"]
            and "name" in one
            and one["role"]["value"] in ("button", "region", "heading")
        }
        assert {("button", "Start the camera"), ("button", "dog"), ("region", "The answer")} <= named
        page.js("pictures.firstElementChild.focus()")
        page.key("Enter", 13, "\r")
        page.wait("!!answer")
        assert page.tab.unspoken() == []
        assert page.js("prediction.textContent") in ("unknown", *class_cells(NAMES))
        for _ in range(3):
            page.key("Tab", 9)
        assert page.js("document.activeElement.id") == "threshold"
        page.key("Home", 36)
        assert page.js("verdict.textContent").endswith("it would be: unknown.")
        page.key("Tab", 9)
        page.key("Enter", 13, "\r")  # back to the model's threshold
        assert page.js("threshold === null && document.activeElement.id === 'threshold'")


def test_the_camera_is_asked_until_it_is_stopped(page, folder):
    with hosted(folder) as url:
        page.open(url, 390)
        page.js("$('watch').focus()")
        page.key("Enter", 13, "\r")  # Chromium's own camera shows a green field
        page.wait("!!answer && rate.textContent !== ''")
        assert page.js("prediction.textContent") == "dog"
        assert page.js("answer.pixels.length") > 100
        assert 0 < float(page.js("rate.textContent").split()[0]) <= 10
        assert page.js("[video.hidden, $('watch').textContent]") == [False, "Stop the camera"]
        assert page.js("$('answer').getAttribute('aria-live')") == "off"
        page.wait("spoken.textContent === 'dog'")
        assert page.tab.overflow() <= 0
        page.key("Enter", 13, "\r")
        assert page.js("[video.hidden, $('watch').textContent]") == [True, "Start the camera"]
        assert page.js("stream === null && video.srcObject === null && details.hidden === false")
        page.js("none = async () => { throw new DOMException('', 'NotFoundError'); }; 0")
        page.js("navigator.mediaDevices.getUserMedia = none; 0")
        page.js("$('watch').click()")
        page.wait("error.textContent.startsWith('There is no camera')")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda folder: (folder / "model.onnx").unlink(),
            "The host has no whole model.onnx (status 404): upload",
        ),
        (
            lambda folder: (folder / "model.json").unlink(),
            "The host has no whole model.json (status 404): upload",
        ),
        (
            lambda folder: (folder / "runtime" / runtime.BINARY).write_bytes(b"four"),
            f"The host has no whole runtime/{runtime.BINARY} (4 of 8 bytes): upload",
        ),
        (
            lambda folder: (folder / "runtime" / "ort.wasm.bundle.min.js").unlink(),
            "This browser cannot run the recogniser (Failed to fetch dynamically imported module",
        ),
    ],
)
def test_what_a_host_lacks_is_told(page, folder, tmp_path, harm, said):
    shutil.copytree(folder, tmp_path / "copy")
    harm(tmp_path / "copy")
    with hosted(tmp_path / "copy") as url:
        page.open(url)
        assert page.js("error.textContent").startswith(said)
        assert page.give(plain(tmp_path / "any.png", (1, 2, 3))).startswith(said)


def test_a_page_that_is_opened_as_a_file_says_so(page, folder):
    page.open((folder / "index.html").as_uri())
    assert page.js("error.textContent").startswith("A page that is opened as a file may load none")


# with onnxruntime-web itself --------------------------------------------------------------------------


@pytest.fixture
def onnxruntime_web():
    """The unpacked npm package; see the variable OSR_ONNXRUNTIME_WEB."""
    default = Path(__file__).parents[2] / "node_modules" / "onnxruntime-web"
    folder = Path(os.environ.get("OSR_ONNXRUNTIME_WEB", default))
    if not (folder / "dist" / runtime.BINARY).is_file():
        pytest.skip(f"no onnxruntime-web in {folder} (npm install it there, or set OSR_ONNXRUNTIME_WEB)")
    return folder


def test_a_browser_decides_as_python(page, onnxruntime_web, tmp_path):
    save(make(SHARED, "fisher"), tmp_path / "any.ckpt")
    words = ["export", "--ckpt_path", tmp_path / "any.ckpt", "--page", tmp_path / "page"]
    assert main([*map(str, words), "--page_runtime", str(onnxruntime_web)]) == 0
    files = [tmp_path / f"{number}.png" for number in range(10)]
    for image, path in zip(pictures(10, seed=4).numpy(), files, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).resize((41, 33)).save(path)
    expected = load(tmp_path / "page" / "model.onnx").predict(files)
    assert len({one.unknown for one in expected}) == 2
    with hosted(tmp_path / "page") as url:
        page.open(url)
        assert [page.give(path) for path in files[:2]] == class_cells([one.label for one in expected[:2]])
        for path, one in zip(files, expected, strict=True):
            blob = f"new Blob([{_bytes(path.read_bytes())}])"
            row = page.js(f"explain({blob}, 'x').then((content) => content.row)")
            assert row["prediction"] == class_cells([one.label])[0]
            assert row["score"] == pytest.approx(one.score, rel=1e-4, abs=1e-4)
            assert row["confidence"] == pytest.approx(one.confidence, abs=1e-5)
        assert page.js("window.stopped || []") == []


# the folder ------------------------------------------------------------------------------------------


def test_the_folder_holds_all_that_the_page_loads(folder, checkpoint):
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    files = {"ort.wasm.bundle.min.js", runtime.BINARY, *runtime.LICENCES}
    assert found == {"index.html", "model.json", "model.onnx", *(f"runtime/{name}" for name in files)}
    assert "Microsoft" in (folder / "runtime" / "LICENSE").read_text()
    told = json.loads((folder / "model.json").read_text())
    assert told["threshold"] == load(folder / "model.onnx").threshold.value == 0.5
    assert told["classes"] == class_cells(NAMES)
    assert told["bytes"] == {"graph": (folder / "model.onnx").stat().st_size, "runtime": 8}
    text = (folder / "index.html").read_text()
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27; &#x27;self&#x27; &#x27;wasm-unsafe-eval&#x27;;" in text
    assert "http://" not in text.replace("http://localhost:8000", "")


def test_pages_and_continuous_integration_name_the_version():
    for name in ("docs/deploy.md", ".github/workflows/ci.yml"):
        text = (Path(__file__).parents[2] / name).read_text()
        assert f"{runtime.PACKAGE}@{runtime.VERSION}" in text, name


def error(capsys, *words):
    assert main(["export", *map(str, words)]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_mistakes_are_told_before_the_checkpoint_is_read(checkpoint, tmp_path, capsys, monkeypatch):
    words = ["--ckpt_path", checkpoint, "--page"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    assert "full is not empty: name a new folder" in error(capsys, *words, tmp_path / "full")
    assert "a.txt is a file: name a folder" in error(capsys, *words, tmp_path / "full" / "a.txt")
    assert "there is no folder" in error(capsys, *words, tmp_path / "no" / "page")
    assert "give one of them" in error(capsys, *words, tmp_path / "page", "--output", tmp_path / "a.onnx")
    assert "give --page FOLDER as well" in error(
        capsys, "--ckpt_path", checkpoint, "--page_runtime", tmp_path
    )
    words += [tmp_path / "page", "--page_runtime"]
    assert "there is no such folder; npm pack" in error(capsys, *words, tmp_path / "none")
    assert "has no ort.wasm.bundle.min.mjs and no ort-wasm" in error(capsys, *words, tmp_path / "full")
    given = stand_in(tmp_path / "given")
    (given / "dist" / runtime.BINARY).unlink()
    assert f"has no {runtime.BINARY}; give" in error(capsys, *words, given)
    (given / "dist" / runtime.BINARY).touch()
    (given / "dist" / runtime.SCRIPT).write_text("/* ONNX Runtime Web v1.2.3 */")
    assert f"is 1.2.3, and the page needs {runtime.VERSION}" in error(capsys, *words, given / "dist")
    (given / "dist" / runtime.SCRIPT).write_text(STAND_IN)
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    assert "there is no LICENSE of onnxruntime" in error(capsys, *words, given)
    for name in runtime.LICENCES:
        (given / name).write_text(f"its {name}")
    assert runtime.read_runtime(given)["LICENSE"] == b"its LICENSE"
    assert not (tmp_path / "page").exists()


def npm(folder, script):
    """A program of that name, first on the path."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_what_npm_fetches_is_what_was_published(checkpoint, tmp_path, capsys, monkeypatch):
    words = ["--ckpt_path", checkpoint, "--page", tmp_path / "page"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs npm to fetch onnxruntime-web" in error(capsys, *words)
    monkeypatch.undo()
    says = "npm error code ECONNREFUSED\nnpm error syscall connect\nnpm error FetchError: request failed"
    monkeypatch.setenv("PATH", npm(tmp_path / "failing", f"printf '{says}\\n' >&2; exit 1"))
    assert f"cannot fetch onnxruntime-web {runtime.VERSION} (FetchError: request failed): try" in error(
        capsys, *words
    )
    monkeypatch.undo()

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as package:
        package.add(stand_in(tmp_path / "given"), "package")
    (tmp_path / "published.tgz").write_bytes(content.getvalue())
    monkeypatch.setenv("PATH", npm(tmp_path / "good", f"cp {tmp_path}/published.tgz {runtime.PACKAGE}.tgz"))
    assert f"is not the published onnxruntime-web {runtime.VERSION}" in error(capsys, *words)
    digest = base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
    monkeypatch.setattr(runtime, "INTEGRITY", digest)
    assert runtime.read_runtime(None)["ort.wasm.bundle.min.js"] == STAND_IN.encode()
    assert not (tmp_path / "page").exists()
