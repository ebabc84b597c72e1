"""Whether the map of ``osr explain`` finds a foreign object: photographs of known classes with one pasted in.

The checkpoint is of a frozen backbone that keeps its known images, so that pictures which made it are told
from others. A square of a ninth of the area is pasted at a random place: letters onto validation pictures, by
which the map was chosen among the candidates, and CIFAR-10 pictures and clothing of unknown classes onto
pictures that the checkpoint has never seen. A map is right where its maximum lies on the object. Writes a
section of docs/explain.md, and with --figure a picture of some maps.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Target, console, finish, new_parser, print_table, start, table_lines, write_section
from PIL import Image

from osr_lightning import load
from osr_lightning.models.places import find_places
from osr_lightning.recogniser.explain import draw, scored_windows
from osr_lightning.recogniser.explanation import UnusualMap
from osr_lightning.scoring.scores import mean_log_probability

ROOT = Path(__file__).parents[1]
SECTION = "Does the map find what is foreign?"
SHARE = 1 / 3  # of the picture's edge that an object takes
LETTERS, CIFAR, CLOTHING = "letters", "CIFAR-10 pictures", "clothing of unknown classes"
OTHERS = "clothing of other known classes"
KINDS = (LETTERS, OTHERS, CIFAR, CLOTHING)
CHOOSING = (LETTERS, OTHERS)
MAP = "window alone, less image without it, less what is usual"
CANDIDATES = (
    *(MAP, "window alone, less image without it", "window alone", "image without window"),
    *("one place alone", "norm"),
)
CHANCE = ("any place at random", "the middle")
PANELS, PANEL = 4, 150  # of the figure: pictures, and pixels a side


def main() -> None:
    parser = new_parser(__doc__, "explain", repeats=None)
    parser.add_argument("--ckpt_path", type=Path, required=True, help="of some classes of DATA/clothing")
    parser.add_argument("--count", type=int, default=100, help="pictures of each kind of object")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "explain.md", help="gets the section")
    parser.add_argument("--figure", type=Path, help="a PNG of some maps")
    arguments = parser.parse_args()
    machine = start(arguments)
    recogniser = load(arguments.ckpt_path)
    found = {kind: measured(recogniser, kind, arguments) for kind in KINDS}
    names = (*CANDIDATES, *CHANCE)
    rows = [(name, *(f"{one['hits'][name]:.0%}" for one in found.values())) for name in names]
    print_table("the maximum lies on the object", ["", *found], rows)
    write_section(arguments.page, SECTION, section(found, rows))
    if arguments.figure:
        console.print(f"{arguments.figure}: {arguments.figure.stat().st_size:,} bytes")
    targets = [Target(f"map on {kind}", found[kind]["hits"][MAP], 0.8) for kind in (CIFAR, CLOTHING)]
    targets += [Target(f"chance on {k}", found[k]["hits"][CHANCE[0]], 0.15, at_least=False) for k in found]
    finish(arguments, machine, {"found": found}, targets)


def section(found: dict[str, dict[str, Any]], rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of the page."""
    counts = ", ".join(f"{one['pictures']} with {kind}" for kind, one in found.items())
    alarms = ", ".join(f"{one['before']:.0%} and {one['after']:.0%} ({kind})" for kind, one in found.items())
    moved = {kind: one for kind, one in found.items() if one["newly_pictures"]}
    newly = [f"{one['newly']:.0%} of {one['newly_pictures']} ({kind})" for kind, one in moved.items()]
    return [
        "```bash",
        "cd benchmarks && python explain.py --data-root DATA --ckpt_path CKPT --figure ../docs/explain.png",
        "```",
        "",
        f"Photographs of known classes with a pasted square of a ninth of their area ({counts}).",
        "Share of maps whose maximum lies on the object:",
        "",
        *table_lines(("map", *found), rows),
        "",
        f"`{MAP}` is what `osr explain` draws.",
        "It was chosen by letters and by clothing of other known classes, on validation pictures; pictures",
        "with other objects were seen by no training, calibration or choice. Squares within a picture cover",
        "its middle more often than other points. `norm` is the length of the features at each place. The",
        "share of pictures called unknown before and after an object was pasted:",
        f"{alarms}.",
        f"Of those that the object made unknown, the map finds it in {', '.join(newly)}.",
    ]


def measured(recogniser: Any, kind: str, arguments: Namespace) -> dict[str, Any]:  # noqa: ANN401
    """Hits of every candidate on pictures with one kind of object."""
    rng = np.random.default_rng(0)
    hits: dict[str, list[bool]] = {name: [] for name in (*CANDIDATES, *CHANCE)}
    before, after = [], []
    panels: list[Image.Image] = []
    make = objects(kind, arguments.data_root, recogniser, rng)
    for file in pictures(recogniser, kind in CHOOSING, arguments, rng):
        plain = recogniser.prepare(file)
        size = plain.shape[1]
        edge = round(SHARE * size)
        top, left = rng.integers(0, size - edge + 1, 2)
        pixels = plain.copy()
        pasted = np.asarray(make(edge, file.parent.name)).transpose(2, 0, 1)
        pixels[:, top : top + edge, left : left + edge] = pasted
        unknown = recogniser.answer(np.stack([plain, pixels])).unknown
        before.append(bool(unknown[0]))
        after.append(bool(unknown[1]))
        maps = candidates(recogniser, pixels)
        spots = {name: found.maximum for name, found in maps.items()}
        spots |= {CHANCE[0]: tuple(rng.random(2)), CHANCE[1]: (0.5, 0.5)}
        for name, (x, y) in spots.items():
            hits[name].append(left <= x * size < left + edge and top <= y * size < top + edge)
        if kind == CIFAR and len(panels) < 2 * PANELS:
            panels += [shown(pixels), shown(pixels, maps[MAP])]
    if arguments.figure and panels:
        save(panels, arguments.figure)
    newly = np.array(after) & ~np.array(before)
    return {
        "pictures": len(before),
        "before": float(np.mean(before)),
        "after": float(np.mean(after)),
        "hits": {name: float(np.mean(found)) for name, found in hits.items()},
        "newly_pictures": int(newly.sum()),
        "newly": float(np.array(hits[MAP])[newly].mean()) if newly.any() else None,
    }


@torch.inference_mode()
def candidates(recogniser: Any, pixels: np.ndarray) -> dict[str, UnusualMap]:  # noqa: ANN401
    """Every map of prepared pixels ``(C, H, W)``."""
    image = recogniser.standardise(torch.from_numpy(pixels[None]))
    layers = recogniser.detectors[recogniser.threshold.score].layers
    own = mean_log_probability(recogniser.sampler(image).logits)
    places = find_places(recogniser.sampler, image, layers)
    found = scored_windows(places, image, layers, partial(recogniser._score_of_places, own=own))
    usual = recogniser._usual_map(places, layers)
    norm = recogniser.sampler.network.body.module.forward_features(image)[0].norm(dim=0).double().numpy()
    return {
        MAP: draw(found, [one.difference - other for one, other in zip(found, usual, strict=True)]),
        CANDIDATES[1]: draw(found, [one.difference for one in found]),
        CANDIDATES[2]: draw(found, [one.alone for one in found]),
        CANDIDATES[3]: draw(found, [-one.without for one in found]),
        CANDIDATES[4]: UnusualMap(found[0].alone, found[0].side),
        CANDIDATES[5]: UnusualMap(norm, len(norm)),
    }


def pictures(
    recogniser: Any,  # noqa: ANN401
    validation: bool,
    arguments: Namespace,
    rng: np.random.Generator,
) -> list[Path]:
    """Some of `known_files`, drawn at random."""
    chosen = known_files(recogniser, validation, arguments.data_root)
    return [chosen[row] for row in rng.permutation(len(chosen))[: arguments.count]]


def known_files(recogniser: Any, validation: bool, root: Path) -> list[Path]:  # noqa: ANN401
    """Pictures of known classes: those of its validation, or those that the checkpoint has never seen."""
    known = recogniser.known_images
    held_out = dict(zip((Path(name).name for name in known.files), known.held_out.tolist(), strict=True))
    folders = [root / "clothing" / name for name in recogniser.spec.classes]
    files = [file for folder in folders for file in sorted(folder.iterdir())]
    return [f for f in files if (held_out.get(f.name, False) if validation else f.name not in held_out)]


def objects(
    kind: str,
    root: Path,
    recogniser: Any,  # noqa: ANN401
    rng: np.random.Generator,
) -> Callable[[int, str], Image.Image]:
    """What makes a foreign object of so many pixels a side, for a picture of some class."""
    if kind == LETTERS:
        letters = np.load(root / "notmnist_test.npz")["images"]

        def letter(edge: int, _: str) -> Image.Image:
            ink = letters[rng.integers(len(letters))][..., None] / 255
            one, other = rng.integers(0, 256, (2, 3))
            coloured = Image.fromarray((ink * one + (1 - ink) * other).astype(np.uint8))
            return coloured.resize((edge, edge), Image.Resampling.BICUBIC)

        return letter
    folder = root / "cifar10" / "test" if kind == CIFAR else root / "clothing"
    known = set(recogniser.spec.classes)
    names = (
        one for one in sorted(folder.iterdir()) if one.is_dir() and (kind == CIFAR or one.name not in known)
    )
    files = [file for one in names for file in sorted(one.iterdir())]
    if kind == OTHERS:
        files = known_files(recogniser, True, root)

    def middle(edge: int, own: str) -> Image.Image:
        others = [file for file in files if kind != OTHERS or file.parent.name != own]
        with Image.open(others[rng.integers(len(others))]) as image:
            short = min(image.size)
            left, top = ((side - short) // 2 for side in image.size)
            square = image.convert("RGB").crop((left, top, left + short, top + short))
            return square.resize((edge, edge), Image.Resampling.BICUBIC)

    return middle


def shown(pixels: np.ndarray, found: UnusualMap | None = None) -> Image.Image:
    """A picture, and its map over it."""
    import io

    image = Image.fromarray(pixels.transpose(1, 2, 0)).convert("RGBA")
    if found is not None:
        heat = Image.open(io.BytesIO(found.to_png())).resize(image.size, Image.Resampling.BICUBIC)
        image = Image.alpha_composite(image, heat)
    return image.convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS)


def save(panels: list[Image.Image], file: Path) -> None:
    """Pictures above, their maps below, in a PNG of few colours."""
    sheet = Image.new("RGB", (len(panels) // 2 * (PANEL + 6) - 6, 2 * PANEL + 6), "white")
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place // 2 * (PANEL + 6), place % 2 * (PANEL + 6)))
    sheet.quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    main()
