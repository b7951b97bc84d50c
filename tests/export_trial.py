"""What the tests of exports share: an embedder without a network, and small files as its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from featx._extraction.extractor import Extraction

from featx import ImageEmbedder
from featx._errors import DecodeFailure, ImageDecodeError
from featx._images.digest import digest_content
from featx._images.sources import describe_item, read_content

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

DIMENSION = 8
BROKEN = b"broken"


class HashEmbedder(ImageEmbedder):
    """Embeds an image as random numbers that its digest seeds; `computed` counts what it did."""

    computed: ClassVar[list[bytes]] = []
    fingerprint: ClassVar[str] = "ab12cd34" * 4
    scale: ClassVar[float] = 1.0

    def open_extractor(self) -> HashEmbedder:
        return self

    def digest(self, items: Any) -> list[bytes | None]:
        digests: list[bytes | None] = []
        for item in items:
            try:
                digests.append(digest_content(read_content(item)))
            except ImageDecodeError:
                digests.append(None)
        return digests

    def extract(self, X: Any, advance: Callable[[int], None] = lambda done: None) -> Extraction:
        advance(len(X))
        vectors = np.full((len(X), DIMENSION), np.nan, np.float32)
        digests: list[bytes | None] = []
        failures = []
        for row, item in enumerate(X):
            try:
                content = read_content(item)
                digests.append(digest_content(content))
                if isinstance(content, bytes) and content.startswith(BROKEN):
                    raise ImageDecodeError(describe_item(item), "broken")
            except ImageDecodeError as error:
                digests[row:] = [digests[row] if len(digests) > row else None]
                if self.on_error == "raise":
                    raise ImageDecodeError(error.source, error.reason, row) from None
                failures.append(DecodeFailure(row, error.source, error.reason))
                continue
            self.computed.append(digests[row])
            vectors[row] = vector_of(digests[row]) * self.scale
        return Extraction(vectors, digests, tuple(failures))

    def get_provenance(self) -> dict[str, Any]:
        return {"backbone": "hash", "fingerprint": self.fingerprint}

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        return np.array([f"hash_{column}" for column in range(DIMENSION)], object)


def vector_of(digest: bytes) -> np.ndarray:
    random = np.random.default_rng(int.from_bytes(digest, "big"))
    return random.standard_normal(DIMENSION, np.float32)


def write_images(folder: Path, contents: Sequence[bytes], start: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, content in enumerate(contents, start):
        path = folder / f"{number:04}.jpg"
        path.write_bytes(content)
        paths.append(str(path))
    return paths
