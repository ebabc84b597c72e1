"""``python -m osr_lightning`` and the console script ``osr``."""

import sys

from osr_lightning.cli.main import main, process

__all__ = ["main", "process"]

if __name__ == "__main__":
    sys.exit(process())
