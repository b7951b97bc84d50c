"""Pixels that are pinned: whoever changes them must raise `PIXELS_VERSION`, or caches would mix."""

from __future__ import annotations

import io

import numpy as np
import pytest
import xxhash
from PIL import Image

from featx._images.decode import decode_content
from featx._images.preprocess import PIXELS_VERSION

# The digest of the decoded pixels of each mode, as a PNG of a picture that is made below.
GOLDEN = {
    (1, "1"): "564d56c56a2e5968",
    (1, "L"): "6c30c76f7a423839",
    (1, "LA"): "bf60deaa0a225b5e",
    (1, "P"): "95507c0032d7e104",
    (1, "RGB"): "6605da139e861bdf",
    (1, "RGBA"): "fdd464ca08bcd810",
    (1, "I;16"): "ac7535033aecdc5e",
}


def picture(mode: str) -> bytes:
    rows, columns = np.mgrid[0:40, 0:60]
    if mode == "I;16":
        image = Image.fromarray((rows * 1500 + columns * 30).astype(np.uint16))
    else:
        planes = [rows * 6, columns * 4, (rows * columns) % 256, (rows + columns) * 2]
        full = Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8), "RGBA")
        image = full.convert("RGB").quantize(16) if mode == "P" else full.convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_the_pixels_of_this_version_are_the_pinned_ones(mode: str) -> None:
    pixels = decode_content(picture(mode)).permute(1, 2, 0).contiguous().numpy()
    assert GOLDEN[PIXELS_VERSION, mode] == xxhash.xxh3_64_hexdigest(pixels.tobytes())
