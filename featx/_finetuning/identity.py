"""The identity of a training: everything that decides its result, to find its checkpoint again."""

from __future__ import annotations

import hashlib
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

from featx._backbones.taps import PENULTIMATE, Tap
from featx._errors import ImageDecodeError
from featx._extraction.batches import load_in_order
from featx._images.digest import digest_content
from featx._images.sources import read_content

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from featx._backbones.frozen import FrozenBackbone
    from featx._images.limits import Limits

# They decide where and how fast, or are described by the backbone itself.
_WITHOUT_INFLUENCE = frozenset(
    {
        "backbone",
        "checkpoint",
        "device",
        "image_size",
        "max_file_bytes",
        "max_pixels",
        "num_workers",
        "pixel_memory",
        "preprocessing",
        "progress",
        "weights",
    }
)

_PIECE = 64


def describe_training(
    parameters: Mapping[str, Any],
    backbone: FrozenBackbone,
    images_digest: str,
    classes: np.ndarray,
    codes: np.ndarray,
    *,
    drawn: bool,
) -> dict[str, Any]:
    """Return everything that decides what comes of a training, as plain JSON types.

    Parameters
    ----------
    parameters : mapping
        Of the classifier.
    backbone : FrozenBackbone
        What it begins with.
    images_digest : str
        As `digest_images` returns it.
    classes, codes : ndarray
        As `featx._labels.sort_classes` returns them.
    drawn : bool
        Whether the backbone's weights were drawn with the seed, which the checkpoint itself knows.

    Returns
    -------
    dict
    """
    described = backbone.describe(Tap(PENULTIMATE, "avg"))
    if drawn:
        del described["weights_sha256"]
    return {
        "backbone": described,
        "parameters": {
            # Some things print their address, which is of the process.
            name: re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
            for name, value in sorted(parameters.items())
            if name not in _WITHOUT_INFLUENCE
        },
        "images": images_digest,
        "classes": repr(classes.tolist()),
        "labels": hashlib.sha256(codes.tobytes()).hexdigest(),
    }


def digest_images(items: Sequence[Any], limits: Limits, num_workers: int) -> str:
    """Return the digest of the contents of some images, in their order.

    Parameters
    ----------
    items : sequence
        What `featx._images.sources.as_image_list` returns.
    limits : Limits
        The largest that are read.
    num_workers : int
        Threads that read.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ImageDecodeError
        If one cannot be read; its row is named.
    """

    def digest(row: int) -> bytes:
        try:
            return digest_content(read_content(items[row], limits))
        except ImageDecodeError as error:
            raise ImageDecodeError(error.source, error.reason, row) from error

    total = hashlib.sha256()
    rows = range(len(items))
    with closing(load_in_order(rows, digest, num_workers=num_workers, ahead=_PIECE)) as outcomes:
        for _, digested in outcomes:
            total.update(digested)
    return total.hexdigest()
