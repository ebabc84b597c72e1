"""Prints the section of CHANGELOG.md that a tag releases: python .ci/release_notes.py v0.3.0."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str, version: str, changelog: str) -> str:
    """The text below the version's head, which has to have the day of the release.

    Args:
        tag: ``v`` and the version.
        version: of the package.
        changelog: the whole file.

    Raises:
        SystemExit: with the reason, where the three do not go together.
    """
    if tag != f"v{version}":
        raise SystemExit(f"the tag {tag} is not v{version}, the version in osr_lightning/__init__.py")
    sections = re.split(r"^## (.*)\n", changelog, flags=re.MULTILINE)
    for head, text in zip(sections[1::2], sections[2::2], strict=True):
        if head.split()[0] == version:
            if not re.fullmatch(r"\S+ \(\d{4}-\d\d-\d\d\)", head):
                raise SystemExit(f"CHANGELOG.md has the head {head!r}: write {version} (YEAR-MONTH-DAY)")
            return text.strip() + "\n"
    raise SystemExit(f"CHANGELOG.md has no section {version}")


def package_version() -> str:
    """As the package says it, without importing it."""
    (version,) = re.findall(
        '^__version__ = "(.*)"$', (ROOT / "osr_lightning" / "__init__.py").read_text(), re.M
    )
    return version


if __name__ == "__main__":
    sys.stdout.write(notes(sys.argv[1], package_version(), (ROOT / "CHANGELOG.md").read_text()))
