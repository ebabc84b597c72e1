"""Whatever the files hold and however they are named: a call works, or says in one line what is wrong."""

import io
import json
import shutil
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from quick import status_of

from osr_lightning.data.sources import load_source
from osr_lightning.deploy import predict
from osr_lightning.errors import UserError, one_line
from osr_lightning.evaluation.compare import compare, print_comparison
from osr_lightning.evaluation.figures.training import read_metrics
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report.write import write_report
from osr_lightning.evaluation.results import evaluate
from osr_lightning.images import pixels
from osr_lightning.images.decode import MAX_PIXELS, pil_to_array, read_image

few, some, many = (settings(deadline=None, max_examples=count) for count in (20, 40, 100))
# libraries warn of what they refuse or mend
pytestmark = pytest.mark.filterwarnings("ignore")

# what is asked of a recogniser while files are read
ASKED = SimpleNamespace(prepare=lambda image: pixels.fit(pixels.to_pixels(image, 4), size=4, channels=1))


def answer(call, *arguments, **options):
    """What the call gives, or None where it refuses in one line; anything else it raises is a bug."""
    try:
        return call(*arguments, **options)
    except UserError as error:
        said = str(error)
    assert said.strip()
    assert said == one_line(said)
    return None


@pytest.fixture(scope="module", autouse=True)
def offline_and_small():
    """No set is fetched, and no header that was hit makes the tests decode a hundred million pixels."""

    def refuse(*_, **__):
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib.request.urlopen", refuse)
        patch.setattr("osr_lightning.images.decode.MAX_PIXELS", min(MAX_PIXELS, 10**6))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@st.composite
def mutated(draw, originals):
    """Bytes of one of the originals, of which some are changed, cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                data[at : at + draw(st.integers(1, 9))] = b""
            case 2:
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case 3:
                data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"]))
            case 4:
                del data[at:]
    return bytes(data)


# images -----------------------------------------------------------------------------------------------


def encoded(image, kind, **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    palette = colour.quantize(16)
    return [
        *(
            encoded(colour, kind)
            for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "PCX")
        ),
        encoded(colour, "JPEG", exif=exif, progressive=True),
        encoded(colour, "PNG", exif=exif),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        encoded(palette, "PNG", transparency=3),
        encoded(palette, "GIF", save_all=True, append_images=[palette, palette.rotate(180)]),
        encoded(Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)), "PNG"),
        encoded(Image.fromarray(rng.random((9, 9), dtype=np.float32)), "TIFF"),
        encoded(colour, "EPS"),
        encoded(colour, "ICO", sizes=[(8, 8)]),
    ]


@many
@given(content=st.one_of(mutated(pictures()), st.binary(max_size=200)), size=st.sampled_from([None, 1, 4]))
def test_damaged_images(folder, content, size):
    (folder / "a.png").write_bytes(content)
    pixels = answer(read_image, folder / "a.png", size)
    assert pixels is None or (pixels.ndim == 3 and len(pixels) in (1, 3) and pixels.size)


@few
@given(content=mutated(pictures()))
def test_a_folder_with_a_damaged_image(folder, content):
    shutil.rmtree(folder / "set", ignore_errors=True)
    (folder / "set" / "x").mkdir(parents=True)
    (folder / "set" / "x" / "a.png").write_bytes(content)
    found = answer(load_source, f"folder:{folder / 'set'}", "train", root=folder)
    assert found is None or len(found) == 1


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_mode_is_read(mode):
    assert pil_to_array(Image.new(mode, (3, 2))).shape[1:] == (2, 3)


# archives and torchvision's files ---------------------------------------------------------------------


def archive(compressed=False, **content) -> bytes:
    (np.savez_compressed if compressed else np.savez)(file := io.BytesIO(), **content)
    return file.getvalue()


SMALL = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
ARCHIVES = [
    archive(images=SMALL, labels=np.array([0, 1, 0, 1, 1])),
    archive(True, images=SMALL, labels=np.array([0, 1, 0, 1, 1])),
]


@many
@given(content=st.one_of(mutated(ARCHIVES), st.binary(max_size=100)))
def test_damaged_archives(folder, content):
    (folder / "a.npz").write_bytes(content)
    answer(load_source, f"npz:{folder / 'a.npz'}", "train", root=folder)


kinds = st.sampled_from(["u1", "i1", "i8", "u8", "f4", "f8", "?", "c8", "U2", "S2", "M8[s]", ">i4"])
odd_arrays = kinds.flatmap(
    lambda kind: arrays(np.dtype(kind), array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)


@some
@given(images=st.one_of(odd_arrays, st.just(SMALL)), labels=odd_arrays, as_known=st.booleans())
def test_archives_of_odd_arrays(folder, images, labels, as_known):
    (folder / "a.npz").write_bytes(archive(images=images, labels=labels))
    answer(load_source, f"npz:{folder / 'a.npz'}", "train", root=folder, as_known=as_known)


IMAGES = struct.pack(">IIII", 0x803, 5, 4, 4) + SMALL.tobytes()
LABELS = struct.pack(">II", 0x801, 5) + bytes([0, 9, 3, 3, 1])


@some
@given(
    images=st.one_of(st.just(IMAGES), mutated([IMAGES])),
    labels=st.one_of(
        mutated([LABELS]), st.binary(min_size=5, max_size=5).map(lambda rows: LABELS[:8] + rows)
    ),
)
def test_damaged_idx_files(folder, images, labels):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    found = answer(load_source, "mnist", "test", root=folder)
    assert found is None or 0 <= found.labels.min() <= found.labels.max() <= 9


# names ------------------------------------------------------------------------------------------------

awkward = st.one_of(
    # no lone surrogates but those of bytes below: neither a command line nor a file's name holds others
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.sampled_from(
        ["-x", "--help", "=1+1", "[red]", "</script>", "$x^$", "%s", "{}", "~nobody", "a\nb", "\x1b[2J"]
    ),
    st.binary(min_size=1, max_size=8).map(
        lambda raw: raw.replace(b"\0", b"0").decode("utf-8", "surrogateescape")
    ),
)


@some
@given(name=awkward, kind=st.sampled_from(["folder:", "npz:", "", "noise:"]))
def test_sources_of_any_name(folder, name, kind):
    assume(not Path(name).is_absolute() and name.strip("./") and "*" not in name)
    answer(load_source, f"{kind}{name}", "test", root=folder)
    answer(lambda: predict.read(ASKED, [*predict.images([name])][:3]))


@few
@given(names=st.lists(awkward, min_size=2, max_size=4, unique=True))
def test_files_and_classes_of_any_name(names):
    with tempfile.TemporaryDirectory() as place:
        root, made = Path(place) / "set", 0
        for name in names:
            try:
                (root / name).mkdir(parents=True)
                Image.new("L", (4, 4), 9 * made).save(root / name / f"{name}.png", "PNG")
            except (OSError, ValueError):  # no name of a file, or one that takes another's place
                continue
            made += 1
        assume(made)
        found = answer(load_source, f"folder:{root}", "train", root=root)
        assume(found is not None)  # hidden, every one
        for text in (*found.files, *found.classes):
            text.encode()
        rows = [image for image in predict.images([place]) if image.path.suffix == ".png"]
        assert not [pixels for pixels in predict.read(ASKED, rows) if isinstance(pixels, str)]
        table = make_table(classes=tuple(dict.fromkeys((*found.classes, "other"))), sources=names)
        make_run(Path(place) / "run", table)
        write_report(Path(place) / "run")


# configs ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=6)
@given(content=mutated([(Path(__file__).parents[2] / "configs" / "baseline.yaml").read_bytes()]))
def test_damaged_configs(folder, content):
    assume(content.isascii() and not {b"&"[0], b"*"[0]} & {*content})
    (folder / "a.yaml").write_bytes(content)
    assert status_of(["fit", "--config", str(folder / "a.yaml"), "--print_config"]) in (0, 2)


# run folders ------------------------------------------------------------------------------------------


def make_table(classes=("a", "b"), sources=("known", "far")) -> PredictionTable:
    rng, label = np.random.default_rng(0), np.array([0, 1, 0, 1, len(classes), len(classes)])
    return PredictionTable(
        class_names=tuple(classes),
        source_names=tuple(sources[:2]),
        groups={"g": (sources[1],)},
        score_name="energy",
        threshold=0.5,
        source=(label == len(classes)).astype(np.int64),
        label=label,
        predicted_class=np.array([0, 1, 1, 1, 0, 1]),
        confidence=rng.random(6),
        nll=rng.random(6),
        scores={"energy": rng.random(6), "msp": rng.random(6)},
        logits=rng.random((6, len(classes)), dtype=np.float32),
    )


def make_run(folder, table) -> dict:
    results = {
        **{"schema_version": 2, "experiment": "x", "seed": 0, "classes": list(table.class_names)},
        **{"model": {"class": "c", "parameters": 3}, "score": {"name": "energy"}, "warnings": ["w"]},
        **{"threshold": {"value": 0.5, "optimistic": False}, "timing": {"test_s": 1.0}, "test_images": "d"},
        **evaluate(table, 5),
    }
    table.save(folder)
    (folder / "results.json").write_text(json.dumps(results))
    return results


@pytest.fixture(scope="module")
def run(folder):
    """A whole run folder, and one to be damaged."""
    for name in ("whole", "damaged"):
        results = make_run(folder / name, make_table())
    files = {name: (folder / "whole" / name).read_bytes() for name in ("predictions.csv", "evaluation.npz")}
    return folder, results, files


def read_again(folder):
    answer(write_report, folder / "damaged")
    found = answer(compare, [folder / "whole", folder / "damaged"], folder / "out", 3)
    if found is not None:
        print_comparison(found)


def restore(run):
    folder, results, files = run
    (folder / "damaged" / "results.json").write_text(json.dumps(results))
    for name, content in files.items():
        (folder / "damaged" / name).write_bytes(content)
    return folder


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.floats(),
        st.integers(),
        st.just(10**400),
        st.text(max_size=5),
        st.just("\ud800"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def altered(draw, value):
    """The same JSON with one part, at any depth, in another way or left out."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 4)) == 0:
        return draw(values)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, copy = draw(st.sampled_from(keys)), value.copy()
    if draw(st.integers(0, 5)) == 0:
        del copy[key]
    else:
        copy[key] = draw(altered(value[key]))
    return copy


@some
@given(data=st.data())
def test_results_of_other_content(run, data):
    folder = restore(run)
    results = run[1]
    for _ in range(data.draw(st.integers(1, 3))):
        results = data.draw(altered(results))
    (folder / "damaged" / "results.json").write_text(json.dumps(results))
    read_again(folder)


@some
@given(data=st.data(), name=st.sampled_from(["results.json", "predictions.csv", "evaluation.npz"]))
def test_damaged_files_of_a_run(run, data, name):
    folder = restore(run)
    path = folder / "damaged" / name
    path.write_bytes(data.draw(mutated([path.read_bytes()])))
    read_again(folder)


@some
@given(
    name=st.sampled_from(
        [
            "class_names",
            "source_names",
            "groups",
            "score_name",
            "threshold",
            "predicted_class",
            "nll",
            "logits",
        ]
    ),
    value=odd_arrays,
)
def test_odd_arrays_of_a_run(run, name, value):
    folder = restore(run)
    path = folder / "damaged" / "evaluation.npz"
    with np.load(path) as file:
        kept = {key: file[key] for key in file.files}
    np.savez(path, **(kept | {name: value}))
    read_again(folder)


@some
@given(
    content=st.one_of(
        mutated([b"epoch,step,train/loss,val/loss\n0,1,2.5,\n0,1,,1.5\n1,2,0.5,\n"]), st.binary(max_size=60)
    )
)
def test_damaged_metrics(folder, content):
    (folder / "metrics.csv").write_bytes(content)
    answer(read_metrics, folder / "metrics.csv")
