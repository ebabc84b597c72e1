"""onnxruntime-web, which runs a graph in a browser: its files, from a folder or by npm, of one version."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from osr_lightning.atomic_write import as_text
from osr_lightning.errors import UserError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# of the package as the registry has it
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
# the package's files -> ours: many hosts call an .mjs no script
FILES = {SCRIPT: "ort.wasm.bundle.min.js", BINARY: BINARY}
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
_FETCH = f"npm pack {PACKAGE}@{VERSION}"
_WAY_OUT = "give its unpacked package with --page_runtime FOLDER"
_TIMEOUT = 600  # seconds


def read_runtime(folder: Path | None) -> dict[str, bytes]:
    """Names in the page's folder of onnxruntime-web -> contents, licences included.

    Args:
        folder: the unpacked npm package, or its ``dist``; npm fetches the package where none is given.

    Raises:
        UserError: where files are missing, or of another version; where there is no npm, or no network.
    """
    if folder is not None:
        found = _of_folder(folder)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            found = _of_tarball(_fetched(Path(scratch)))
    return {FILES[name]: content for name, content in found.items()} | _licences(folder)


def _of_folder(folder: Path) -> dict[str, bytes]:
    named = f"--page_runtime {as_text(folder)}"
    if not folder.is_dir():
        raise UserError(f"{named}: there is no such folder; {_FETCH} fetches its files")
    places = [folder / "dist", folder]
    place = next((one for one in places if any((one / name).is_file() for name in FILES)), folder)
    if missing := [name for name in FILES if not (place / name).is_file()]:
        raise UserError(f"{named} has no {' and no '.join(missing)}; give what {_FETCH} brings, unpacked")
    found = {name: (place / name).read_bytes() for name in FILES}
    version = _version(found[SCRIPT])
    if version != VERSION:
        raise UserError(
            f"{named}: its {PACKAGE} is {version or 'of no known version'}, and the page needs {VERSION}; "
            f"{_FETCH} fetches it"
        )
    return found


def _version(script: bytes) -> str | None:
    found = re.search(rb"ONNX Runtime Web v([0-9][0-9A-Za-z.-]*)", script[:1000])
    return None if found is None else found[1].decode()


def _fetched(scratch: Path) -> bytes:
    """The package's tarball, whose digest is known."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"--page needs npm to fetch {PACKAGE} {VERSION}, and there is none; {_WAY_OUT}")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--fetch-retry-mintimeout=1000"]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=scratch, capture_output=True, timeout=_TIMEOUT, check=False
        )
        said, failed = done.stderr.decode("utf-8", "replace"), done.returncode != 0
    except subprocess.TimeoutExpired:
        said, failed = f"npm error no answer in {_TIMEOUT} s", True
    tarballs = sorted(scratch.glob("*.tgz"))
    if failed or not tarballs:
        raise UserError(
            f"--page: npm cannot fetch {PACKAGE} {VERSION} ({_reason(said)}): try again with a network, or "
            f"{_WAY_OUT}"
        )
    content = tarballs[0].read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
        raise UserError(
            f"--page: what npm fetched is not the published {PACKAGE} {VERSION}: see what npm config get "
            f"registry says, or {_WAY_OUT}"
        )
    return content


def _reason(said: str) -> str:
    """The first of npm's errors that is a sentence."""
    errors = re.findall(r"^npm (?:error|ERR!) (?!code |errno |syscall )(.*\S)", said, re.MULTILINE)
    return errors[0][:200] if errors else "it says nothing"


def _of_tarball(content: bytes) -> dict[str, bytes]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as package:
            found = {}
            for name in FILES:
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None  # the digest was that of a package with these files
                found[name] = member.read()
    return found


def _licences(folder: Path | None) -> dict[str, bytes]:
    """The texts that must go with the files, which the npm package lacks.

    They are those of onnxruntime, of which Python's package is another build, if the folder has none.
    """
    spec = find_spec("onnxruntime")
    origins = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    places = origins if folder is None else [folder, folder.parent, *origins]
    found = {}
    for name in LICENCES:
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is None:
            raise UserError(
                f"--page: there is no {name} of onnxruntime, which must go with its files: pip install "
                "onnxruntime, or put it into the folder of --page_runtime"
            )
        found[name] = path.read_bytes()
    return found
