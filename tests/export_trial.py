"""What the tests of exports share: an embedder without a network, and small files as its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featx import ImageEmbedder
from featx._errors import DecodeFailure, ImageDecodeError
from featx._extraction.parcels import Parcel
from featx._images.digest import digest_content
from featx._images.sources import describe_item, read_content
from featx._progress import no_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from featx._extraction.stream import Skip
    from featx._progress import Advance

DIMENSION = 8
BROKEN = b"broken"


class HashEmbedder(ImageEmbedder):
    """Embeds an image as random numbers that its digest seeds; `computed` counts what it did."""

    computed: ClassVar[list[bytes]] = []
    recipe: ClassVar[str] = "ab12cd34" * 4
    parcel_images: ClassVar[int] = 4
    scale: ClassVar[float] = 1.0

    def stream(
        self,
        X: Any,
        *,
        skip: Skip | None = None,
        advance: Advance = no_progress,
        use_cache: bool = True,
    ) -> Iterator[Parcel]:
        for start in range(0, len(X), self.parcel_images):
            items = [X[row] for row in range(start, min(start + self.parcel_images, len(X)))]
            contents = [self._read(item) for item in items]
            digests = [None if c is None else digest_content(c) for c in contents]
            is_skipped = None if skip is None else skip(start, items, digests)
            vectors = np.full((len(items), DIMENSION), np.nan, np.float32)
            failures = []
            for place, (item, content, digest) in enumerate(
                zip(items, contents, digests, strict=True)
            ):
                if is_skipped is not None and is_skipped[place]:
                    continue
                if content is None or (isinstance(content, bytes) and content.startswith(BROKEN)):
                    reason = "no such file" if content is None else "broken"
                    failure = DecodeFailure(start + place, describe_item(item), reason)
                    if self.on_error == "raise":
                        raise ImageDecodeError(failure.source, reason, failure.row)
                    failures.append(failure)
                    continue
                self.computed.append(digest)
                vectors[place] = vector_of(digest) * self.scale
            advance(len(items), 0)
            yield Parcel(start, items, digests, vectors, tuple(failures))

    def _read(self, item: Any) -> Any:
        try:
            return read_content(item)
        except ImageDecodeError:
            return None

    def get_provenance(self) -> dict[str, Any]:
        return {"backbone": "hash", "recipe": self.recipe}

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
