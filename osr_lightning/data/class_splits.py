"""Published divisions of a set's classes into known and unknown ones.

- ``arpl``: the lists of ``split.py`` of https://github.com/iCGY96/ARPL, in its order (Chen et al.,
  Adversarial Reciprocal Points Learning, TPAMI 2021): six of the ten classes of MNIST, SVHN and CIFAR-10,
  five times, which differ from set to set; 20 of the 200 classes of TinyImageNet. For a set of ten classes
  without a list of its own MNIST's are taken.
- ``arpl_plus_10``, ``arpl_plus_50``: the same file's four classes of CIFAR-10 against 10 or 50 of CIFAR-100.
- ``neal``: Neal et al., Open Set Learning with Counterfactual Images, ECCV 2018, one list of six known
  classes for all sets of ten. Its numbers do not compare with those of ``arpl``.
- ``ssb``: the Semantic Shift Benchmark of https://github.com/sgvaze/SSB (Vaze et al., Open-Set Recognition: a
  Good Closed-Set Classifier is All You Need?, ICLR 2022): half of the classes of CUB, FGVC-Aircraft and
  Stanford Cars, the others easy, medium or hard to tell from them.
- ``openood``: all classes of CIFAR-10 or CIFAR-100 against the near and far sets of
  https://github.com/Jingkang50/OpenOOD (Zhang et al., OpenOOD v1.5: Enhanced Benchmark for
  Out-of-Distribution Detection, 2023), whose lists leave out images of known classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from osr_lightning.errors import UserError

# fmt: off
ARPL = {
    "mnist": (
        (2, 4, 5, 9, 8, 3),
        (3, 2, 6, 9, 4, 0),
        (5, 8, 3, 2, 4, 6),
        (3, 7, 8, 4, 0, 5),
        (6, 3, 4, 9, 8, 2),
    ),
    "svhn": (
        (5, 3, 7, 2, 8, 6),
        (3, 8, 7, 6, 2, 5),
        (8, 9, 4, 7, 2, 1),
        (3, 8, 2, 5, 0, 6),
        (4, 9, 2, 7, 1, 0),
    ),
    "cifar10": (
        (0, 6, 4, 9, 1, 7),
        (7, 6, 4, 9, 0, 1),
        (1, 5, 7, 3, 9, 4),
        (8, 6, 1, 9, 0, 7),
        (2, 4, 1, 7, 9, 6),
    ),
    "tiny_imagenet": (
        (108, 147, 17, 58, 193, 123, 72, 144, 75, 167, 134, 14, 81, 171, 44, 197, 152, 66, 1, 133),
        (198, 161, 91, 59, 57, 134, 61, 184, 90, 35, 29, 23, 199, 38, 133, 19, 186, 18, 85, 67),
        (177, 0, 119, 26, 78, 80, 191, 46, 134, 92, 31, 152, 27, 60, 114, 50, 51, 133, 162, 93),
        (98, 36, 158, 177, 189, 157, 170, 191, 82, 196, 138, 166, 43, 13, 152, 11, 75, 174, 193, 190),
        (95, 6, 145, 153, 0, 143, 31, 23, 189, 81, 20, 21, 89, 26, 36, 170, 102, 177, 108, 169),
    ),
}
NEAL = ((0, 1, 2, 4, 5, 9), (0, 3, 5, 7, 8, 9), (0, 1, 5, 6, 7, 8), (3, 4, 5, 7, 8, 9), (0, 1, 2, 3, 7, 8))
FOUR = ((4, 7, 9, 1), (6, 7, 1, 9), (9, 6, 1, 7), (6, 4, 9, 1), (1, 0, 9, 8))  # of CIFAR-10
PLUS = {  # of CIFAR-100
    10: (
        (30, 25, 1, 9, 8, 0, 46, 52, 49, 71),
        (41, 9, 49, 40, 73, 60, 48, 30, 95, 71),
        (8, 9, 49, 40, 73, 60, 48, 95, 30, 71),
        (95, 60, 30, 73, 46, 49, 68, 99, 8, 71),
        (33, 2, 3, 97, 46, 21, 64, 63, 88, 43),
    ),
    50: (
        (27, 94, 29, 77, 88, 26, 69, 48, 75, 5, 59, 93, 39, 57, 45, 40, 78, 20, 98, 47, 66, 70, 91, 76,
         41, 83, 99, 32, 53, 72, 2, 95, 21, 73, 84, 68, 35, 11, 55, 60, 30, 25, 1, 9, 8, 0, 46, 52, 49,
         71),
        (65, 97, 86, 24, 45, 67, 2, 3, 91, 98, 79, 29, 62, 82, 33, 76, 0, 35, 5, 16, 54, 11, 99, 52, 85,
         1, 25, 66, 28, 84, 23, 56, 75, 46, 21, 72, 55, 68, 8, 69, 41, 9, 49, 40, 73, 60, 48, 30, 95,
         71),
        (20, 83, 65, 97, 94, 2, 93, 16, 67, 29, 62, 33, 24, 98, 5, 86, 35, 54, 0, 91, 52, 66, 85, 84,
         56, 11, 1, 76, 25, 55, 21, 99, 72, 41, 23, 75, 28, 68, 69, 46, 8, 9, 49, 40, 73, 60, 48, 95,
         30, 71),
        (92, 82, 77, 64, 5, 33, 62, 56, 70, 0, 20, 28, 67, 14, 84, 53, 91, 29, 85, 2, 52, 83, 75, 35,
         11, 21, 72, 98, 55, 1, 41, 76, 25, 66, 69, 9, 48, 54, 40, 23, 95, 60, 30, 73, 46, 49, 68, 99,
         8, 71),
        (47, 6, 19, 0, 62, 93, 59, 65, 54, 70, 34, 55, 23, 38, 72, 76, 53, 31, 78, 96, 77, 27, 92, 18,
         82, 50, 98, 32, 1, 75, 83, 4, 51, 35, 80, 11, 74, 66, 36, 42, 33, 2, 3, 97, 46, 21, 64, 63, 88,
         43),
    ),
}
SSB = {  # known, easy, medium and hard
    "cub": (
        (150, 70, 34, 178, 199, 131, 129, 147, 134, 11, 26, 93, 95, 121, 123, 99, 149, 167, 18, 31, 69,
         198, 116, 158, 126, 17, 5, 179, 111, 163, 184, 81, 174, 42, 53, 89, 77, 55, 23, 48, 43, 44, 56,
         28, 193, 143, 0, 176, 84, 15, 38, 154, 141, 190, 172, 124, 189, 19, 80, 157, 12, 9, 79, 30, 94,
         67, 197, 97, 168, 137, 119, 76, 98, 88, 40, 106, 171, 87, 166, 186, 27, 51, 144, 135, 161, 64,
         177, 7, 146, 61, 50, 162, 133, 82, 39, 74, 72, 91, 196, 136),
        (20, 159, 173, 148, 1, 57, 113, 165, 52, 109, 14, 4, 180, 6, 182, 68, 33, 108, 46, 35, 75, 188,
         187, 100, 47, 105, 41, 86, 16, 54, 139, 138),
        (152, 195, 132, 83, 22, 192, 153, 175, 191, 155, 49, 194, 73, 66, 170, 151, 169, 96, 103, 37,
         181, 127, 78, 21, 10, 164, 62, 2, 183, 85, 45, 60, 92, 185),
        (29, 110, 3, 8, 13, 58, 142, 25, 145, 63, 59, 65, 24, 140, 120, 32, 114, 107, 160, 130, 118,
         101, 115, 128, 117, 71, 156, 112, 36, 122, 104, 102, 90, 125),
    ),
    "aircraft": (
        (0, 1, 2, 3, 4, 5, 10, 11, 14, 16, 17, 19, 21, 22, 23, 24, 27, 28, 29, 30, 33, 36, 37, 38, 39,
         41, 43, 44, 45, 46, 47, 48, 52, 53, 56, 57, 58, 63, 64, 65, 66, 67, 71, 73, 76, 77, 79, 92, 95,
         99),
        (80, 81, 42, 84, 40, 90, 74, 75, 97, 98, 34, 35, 93, 94, 96, 72, 91, 83, 62, 89),
        (78, 82, 51, 49, 50, 54, 55, 59, 60, 61, 68, 69, 70, 85, 86, 87, 88),
        (6, 7, 8, 9, 12, 13, 31, 32, 25, 26, 18, 20, 15),
    ),
    "cars": (
        (1, 11, 25, 38, 46, 50, 53, 75, 84, 100, 105, 117, 123, 129, 133, 134, 135, 136, 137, 138, 140,
         144, 145, 146, 147, 149, 150, 151, 153, 160, 161, 162, 163, 164, 167, 168, 169, 174, 175, 180,
         185, 186, 187, 192, 193, 0, 81, 97, 104, 122, 139, 141, 142, 143, 148, 152, 154, 155, 156, 157,
         158, 159, 165, 166, 170, 171, 172, 173, 176, 177, 181, 184, 188, 191, 194, 195, 2, 7, 9, 16,
         20, 26, 28, 44, 54, 95, 98, 102, 127, 178, 182, 22, 41, 82, 93, 112, 125, 189),
        (4, 5, 6, 12, 13, 14, 15, 18, 19, 24, 30, 31, 32, 33, 34, 35, 36, 37, 39, 40, 43, 47, 48, 49,
         51, 52, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 76, 77, 78,
         79, 80, 85, 86, 87, 88, 89, 90, 91, 92, 101, 106, 107, 108, 109, 110, 111, 114, 115, 116, 118,
         119, 120, 121, 124, 130, 131, 132),
        (3, 8, 10, 17, 21, 27, 29, 45, 55, 96, 99, 103, 128, 179, 183),
        (23, 42, 83, 94, 113, 126, 190),
    ),
}
# fmt: on
OPENOOD = {
    "cifar10": (("cifar100", "tin"), ("mnist", "svhn", "texture", "places365")),
    "cifar100": (("cifar10", "tin"), ("mnist", "svhn", "texture", "places365")),
}
NAMES = ("arpl", "neal", "arpl_plus_10", "arpl_plus_50", "ssb", "openood")


class ClassSplit(NamedTuple):
    """One division of a set's classes.

    Attributes:
        known: places of the known classes in the order of the set's; None for all of them.
        unknown: unknown sets as ``data.unknown`` takes them; None for the classes that are not known.
    """

    known: tuple[int, ...] | None
    unknown: Mapping[str, str | Mapping[str, str]] | None = None


def class_splits(splits: str, source: str, config_source: str | None = None) -> list[ClassSplit]:
    """The published splits of a set.

    Args:
        splits: one of ``NAMES``.
        source: the known set.
        config_source: the known set that the config names, of which ``source`` may be a copy in a folder.

    Raises:
        UserError: for another name, or a set that has no such splits.
    """
    if splits not in NAMES:
        raise UserError(f"there are no splits {splits!r}; there are {', '.join(NAMES)}")
    own = {name: found for name in NAMES if (found := _of(name, source))}
    if not own and config_source is not None and source.partition(":")[0] in ("folder", "npz", "list"):
        source = config_source
        own = {name: found for name in NAMES if (found := _of(name, source))}
    if splits in own:
        return own[splits]
    if splits in ("arpl", "neal") and (not own or source in ("mnist", "svhn", "cifar10")):
        return [ClassSplit(known) for known in (NEAL if splits == "neal" else ARPL["mnist"])]
    has = f"it has {' and '.join(own)}" if own else f"{splits} is of {', '.join(_sources(splits))}"
    raise UserError(f"there are no splits {splits} of {source}: {has}")


def _of(splits: str, source: str) -> list[ClassSplit]:
    """The lists that are published of a set; none where there are none."""
    if splits == "arpl":
        return [ClassSplit(known) for known in ARPL.get(source, ())]
    if splits.startswith("arpl_plus_") and source == "cifar10":
        unknown = PLUS[int(splits.removeprefix("arpl_plus_"))]
        return [
            ClassSplit(known, {"cifar100": some("cifar100", others)})
            for known, others in zip(FOUR, unknown, strict=True)
        ]
    if splits == "ssb" and source in SSB:
        known, *others = SSB[source]
        sets = {
            name: some(source, classes)
            for name, classes in zip(("easy", "medium", "hard"), others, strict=True)
        }
        return [ClassSplit(known, sets)]
    benchmark = source.removeprefix("openood:")
    if splits == "openood" and benchmark != source and benchmark in OPENOOD:
        return [
            ClassSplit(
                None,
                {
                    group: {name: f"{source}/{name}" for name in names}
                    for group, names in zip(("near", "far"), OPENOOD[benchmark], strict=True)
                },
            )
        ]
    return []


def _sources(splits: str) -> list[str]:
    every = [*ARPL, *SSB, *(f"openood:{name}" for name in OPENOOD)]
    return [source for source in every if _of(splits, source)]


def some(source: str, classes: Sequence[int]) -> str:
    """Some classes of a source, by their places, as `osr_lightning.data.sources.load_source` takes them."""
    return f"{source}:{','.join(map(str, classes))}"
