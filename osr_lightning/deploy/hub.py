"""Recognisers on the Hugging Face Hub: ``hf:USER/NAME`` in place of a path, and what is put there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from osr_lightning.errors import Failure, UserError, needs

PREFIX = "hf:"
FILES = ("best.ckpt", "model.onnx")  # the one of a repository that is loaded, where no file is named
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?:[:](?P<file>[\w./-]+))?")


class Place(NamedTuple):
    """What ``hf:USER/NAME@REVISION:FILE`` names.

    Attributes:
        repo: ``USER/NAME``.
        revision: a branch, tag or commit; None for the newest.
        file: in the repository; None for the first of ``FILES`` that is there.
    """

    repo: str
    revision: str | None = None
    file: str | None = None


def is_hub(path: object) -> bool:
    """Whether this names a repository of the Hub."""
    return isinstance(path, str) and path.startswith(PREFIX)


def place_of(name: str) -> Place:
    """Read ``hf:USER/NAME``, with ``@REVISION`` and ``:FILE`` where they are given.

    Raises:
        UserError: where it is none.
    """
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is None or ".." in name:
        raise UserError(
            f"{name}: name a repository as hf:USER/NAME, hf:USER/NAME@REVISION or hf:USER/NAME:FILE"
        )
    return Place(**found.groupdict())


def download(name: str) -> str:
    """The path of a repository's checkpoint or exported graph, in the Hub's cache on this machine.

    What comes is data, as any checkpoint is.

    Args:
        name: see `place_of`.

    Raises:
        UserError: where there is no such repository or file, or ``huggingface_hub`` is not installed.
        Failure: where the Hub cannot be reached, and nothing is in the cache.
    """
    place = place_of(name)
    _require(name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = FILES if place.file is None else (place.file,)
    for file in wanted:
        try:
            return hf_hub_download(place.repo, file, revision=place.revision)
        except LocalEntryNotFoundError as error:
            raise Failure(
                f"{name}: the Hub cannot be reached, and this machine has no copy of it ({error}); try again"
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{name}: there is no such repository, or it is private: check the name, or log in with hf "
                "auth login"
            ) from error
        except RevisionNotFoundError as error:
            raise UserError(f"{name}: the repository has no revision {place.revision}") from error
        except EntryNotFoundError:
            continue
        except _of_the_network(HfHubHTTPError) as error:
            raise Failure(f"{name}: {error}") from error
    raise UserError(
        f"{name}: the repository has no {' or '.join(wanted)}; name its file as hf:{place.repo}:FILE"
    )


def upload(name: str, files: Sequence[tuple[Path, str]], *, private: bool = False) -> str:
    """Put files into a repository, which is made where there is none, in one commit.

    Args:
        name: ``hf:USER/NAME``.
        files: each with its name there.
        private: of a repository that is made.

    Returns:
        The repository's address.

    Raises:
        UserError: where the name is none, or nobody is logged in who may write there.
        Failure: where the Hub cannot be reached.
    """
    place = place_of(name)
    if place.revision or place.file:
        raise UserError(f"{name}: push to a repository, as hf:{place.repo}")
    _require(name)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="osr_lightning")
    operations = [CommitOperationAdd(there, str(path)) for path, there in files]
    try:
        address = api.create_repo(place.repo, private=private, exist_ok=True)
        api.create_commit(place.repo, operations, commit_message="Push a run of osr_lightning")
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"{name}: nobody is logged in who may write there: hf auth login, or set HF_TOKEN"
            ) from error
        raise Failure(f"{name}: the Hub refused it ({error})") from error
    except ValueError as error:  # of the card's licence, say
        raise UserError(f"{name}: the Hub refuses the model card: {error}") from error
    except _of_the_network(HfHubHTTPError) as error:
        raise Failure(f"{name}: the Hub cannot be reached ({error}); try again") from error
    return str(address)


def _of_the_network(refusal: type[Exception]) -> tuple[type[Exception], ...]:
    """What is raised where the Hub cannot be reached: its client's errors, of which a refusal is one, too.

    Those are ``OSError`` by some clients only, and which client there is the library's version decides.
    """
    return OSError, *(
        base for base in refusal.__mro__ if issubclass(base, Exception) and base is not Exception
    )


def _require(name: str) -> None:
    if find_spec("huggingface_hub") is None:
        raise UserError(f"{name} {needs('osr_lightning[hub]')}")
