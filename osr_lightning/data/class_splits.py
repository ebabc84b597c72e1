"""Published divisions of ten classes into six known and four unknown ones, five times each.

Two sets of five are in use under the same name, and their numbers do not compare:

- ``arpl``: Chen et al., Adversarial Reciprocal Points Learning, TPAMI 2021 (the authors' ``split.py``), whose
  lists differ from set to set; for a set without a list of its own MNIST's are taken.
- ``neal``: Neal et al., Open Set Learning with Counterfactual Images, ECCV 2018, one list for all sets.
"""

from __future__ import annotations

from osr_lightning.errors import UserError

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
}
NEAL = ((0, 1, 2, 4, 5, 9), (0, 3, 5, 7, 8, 9), (0, 1, 5, 6, 7, 8), (3, 4, 5, 7, 8, 9), (0, 1, 2, 3, 7, 8))
NAMES = ("arpl", "neal")


def known_classes(splits: str, source: str) -> tuple[tuple[int, ...], ...]:
    """The known classes of each of the five splits.

    Args:
        splits: one of ``NAMES``.
        source: the known set.

    Raises:
        UserError: for another name.
    """
    if splits == "neal":
        return NEAL
    if splits == "arpl":
        return ARPL.get(source, ARPL["mnist"])
    raise UserError(f"there are no splits {splits!r}; there are {' and '.join(NAMES)}")
