"""Prints what an exported graph needs beside this package itself, as pip reads it, for predict and serve."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
pillow = [one for one in project["dependencies"] if one.startswith("pillow")]
extras = project["optional-dependencies"]
print(*pillow, *extras["runtime"], *extras["serve"], sep="\n")  # onnxruntime brings numpy
