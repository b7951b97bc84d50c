"""Samples: what a training learns from, in batches whose order depends on the seed alone.

Nothing is drawn from a generator that runs on from epoch to epoch, so that a training that is
resumed draws what an undisturbed one draws, and the number of threads changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from torchvision.transforms import v2

from featx._checks import refuse
from featx._errors import ImageDecodeError, InputError
from featx._extraction.batches import load_in_order
from featx._images.decode import decode_content
from featx._images.digest import digest_content
from featx._images.sources import describe_item, read_content
from featx._labels import list_labels

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from featx._images.limits import Limits
    from featx._images.preprocess import Preprocessing

INITIALIZATION, ORDER, AUGMENTATION, REGULARIZATION, SPLIT = range(5)
"""What the numbers are drawn for."""


def choose_seed(random_state: Any) -> int:
    """Return the seed of a training from what scikit-learn calls a ``random_state``.

    Examples
    --------
    >>> choose_seed(7)
    7
    """
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


def derive_seed(seed: int, purpose: int, *place: int) -> int:
    """Return the seed for one purpose at one place, such as an epoch and a row.

    Examples
    --------
    >>> derive_seed(0, ORDER, 3) == derive_seed(0, ORDER, 3)
    True
    >>> derive_seed(0, ORDER, 3) == derive_seed(0, ORDER, 4)
    False
    """
    state = np.random.SeedSequence([seed, purpose, *place]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU for a block, and put it back as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(seed)
        yield


Augmentation = Callable[[torch.Tensor], torch.Tensor]


def find_augmentation(augment: Any, image_size: int) -> Augmentation | None:
    """Return what changes an image, uint8 (3, side, side) to the same; None for nothing.

    ``"light"`` takes 70 to 100 % of the area, at ratios from 3:4 to 4:3, and mirrors every second
    image: a mild form of the crops of Szegedy et al. ("Going deeper with convolutions", CVPR 2015).
    A callable draws its random numbers from torch, as the transforms of torchvision v2 do.

    Raises
    ------
    InputError
        If it is none of these.

    Examples
    --------
    >>> light = find_augmentation("light", 32)
    >>> light(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([3, 32, 32])
    """
    if isinstance(augment, str) and augment == "light":
        crop = v2.RandomResizedCrop(image_size, scale=(0.7, 1.0), antialias=True)
        augment = v2.Compose([crop, v2.RandomHorizontalFlip()])
    if augment is not None and not callable(augment):
        expected = "None, 'light' or a transform of torchvision.transforms.v2"
        raise refuse("augment", augment, expected, ["light"])
    augmentation: Augmentation | None = augment
    return augmentation


# Enough to hide a slow image, few enough that memory does not grow with the number of images.
_BATCHES_AHEAD = 2
_DIGESTS_AHEAD = 64

_Made = TypeVar("_Made")


class VectorSamples:
    """Vectors, float32 (n, n_features)."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors

    def stream(self, rows: Sequence[int], batch_size: int) -> Generator[torch.Tensor]:
        """Yield the vectors of some rows."""
        yield from self.vectors[torch.as_tensor(rows)]


class ImageSamples:
    """Images, decoded in threads to uint8 (3, side, side) and kept as far as memory allows.

    Parameters
    ----------
    items : sequence
        What `featx._images.sources.as_image_list` returns.
    preprocessing : Preprocessing
        How they are resized and cropped.
    limits : Limits
        The largest that are read.
    num_workers : int
        Threads; 0 decodes in the calling thread.
    memory : int
        Bytes of decoded pixels that are kept for the next epoch. What does not fit is decoded
        again in each.
    """

    def __init__(
        self,
        items: Sequence[Any],
        preprocessing: Preprocessing,
        limits: Limits,
        num_workers: int,
        memory: int,
    ) -> None:
        self._items = items
        self._preprocessing = preprocessing
        self._limits = limits
        self._num_workers = num_workers
        side = preprocessing.image_size
        self.shape = (3, side, side)
        self._n_kept = min(len(items), memory // (3 * side * side))
        self._kept: dict[int, torch.Tensor] = {}

    def stream(self, rows: Sequence[int], batch_size: int) -> Generator[torch.Tensor]:
        """Yield the pixels of some rows, decoded ahead."""
        return self._in_order(self._load, rows, _BATCHES_AHEAD * batch_size)

    def digest(self) -> str:
        """Return the digest of all contents, in their order."""

        def digest_row(row: int) -> bytes:
            return digest_content(read_content(self._items[row], self._limits))

        total = hashlib.sha256()
        for digest in self._in_order(digest_row, range(len(self._items)), _DIGESTS_AHEAD):
            total.update(digest)
        return total.hexdigest()

    def _in_order(
        self, work: Callable[[int], _Made], rows: Sequence[int], ahead: int
    ) -> Generator[_Made]:
        """Yield what is made of some rows, in threads; an image that cannot be read is named."""

        def work_on(row: int) -> _Made:
            try:
                return work(row)
            except ImageDecodeError as error:
                raise ImageDecodeError(error.source, error.reason, row) from error

        with closing(
            load_in_order(rows, work_on, num_workers=self._num_workers, ahead=ahead)
        ) as made:
            for _, outcome in made:
                yield outcome

    def _load(self, row: int) -> torch.Tensor:
        if row in self._kept:
            return self._kept[row]
        item = self._items[row]
        source = describe_item(item)
        content = read_content(item, self._limits)
        decoded = decode_content(content, source, self._limits)
        pixels = self._preprocessing.apply(decoded, source).contiguous()
        if row < self._n_kept:
            self._kept[row] = pixels
        return pixels

    def fixed_batches(self, batch_size: int) -> Generator[tuple[int, torch.Tensor]]:
        """Yield all images in order, in batches of one shape with the number of images in each.

        The last one is padded with zeros, so that a row's numbers do not depend on how many others
        came with it.
        """
        with closing(self.stream(range(len(self._items)), batch_size)) as images:
            while batch := list(islice(images, batch_size)):
                pixels = torch.zeros(batch_size, *self.shape, dtype=torch.uint8)
                torch.stack(batch, out=pixels[: len(batch)])
                yield len(batch), pixels


Samples = VectorSamples | ImageSamples


class Portion:
    """Some rows of the samples with their labels: one iteration is one epoch of batches.

    The batches of an epoch differ by one row at most in size, so that none is so small that
    BatchNorm has nothing to average.

    Parameters
    ----------
    samples : Samples
        What the rows are of.
    labels : ndarray of int64, shape (n_samples,)
        Number of the class of each sample.
    rows : ndarray of int
        Which samples.
    batch_size : int
        At most so many in a batch.
    seed : int or None
        Of the order, which is another in each epoch; None keeps the order of the rows.
    augmentation : callable, optional
        What changes each image, in the calling thread, seeded by seed, epoch and row.
    """

    def __init__(
        self,
        samples: Samples,
        labels: np.ndarray,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self._samples = samples
        self._labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._augmentation = augmentation
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows = self._rows
        if self._seed is not None:
            random = np.random.default_rng(derive_seed(self._seed, ORDER, self.epoch))
            rows = random.permutation(rows)
        with closing(self._samples.stream(rows.tolist(), self._batch_size)) as values:
            for batch in np.array_split(rows, self.n_batches):
                stacked = torch.stack([self._augment(row, next(values)) for row in batch.tolist()])
                yield stacked, self._labels[torch.from_numpy(batch)]

    def _augment(self, row: int, values: torch.Tensor) -> torch.Tensor:
        if self._augmentation is None:
            return values
        with torch_seeded(derive_seed(self._seed or 0, AUGMENTATION, self.epoch, row)):
            # A copy, as the pixels are kept for the next epoch and a transform may work in place.
            changed: Any = self._augmentation(values.clone())
        if not isinstance(changed, torch.Tensor):
            got = type(changed).__name__
        elif (changed.dtype, changed.shape) == (values.dtype, values.shape):
            return changed
        else:
            got = f"{changed.dtype} of shape {tuple(changed.shape)}".removeprefix("torch.")
        raise InputError(
            f"Got {got} from augment but expected uint8 of shape {tuple(values.shape)}, as it was "
            "given; leave normalising to the network"
        )


def split_rows(
    codes: np.ndarray, classes: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are trained on, and those that are held out; each class is in both.

    Raises
    ------
    InputError
        If a class has a single sample.

    Examples
    --------
    >>> rows, held_out = split_rows(np.array([0, 0, 0, 1, 1, 1]), np.array(["a", "b"]), 0.4, 0)
    >>> len(rows), len(held_out)
    (4, 2)
    """
    counts = np.bincount(codes, minlength=len(classes))
    single = classes[counts < 2]
    if len(single):
        raise InputError(
            f"Got a single sample of {list_labels(single)} but early stopping holds some of each "
            "class out; expected at least 2 of each; give more, or set early_stopping=False"
        )
    random = np.random.default_rng(derive_seed(seed, SPLIT))
    held_out = np.zeros(len(codes), dtype=bool)
    for code, count in enumerate(counts):
        size = min(max(1, round(fraction * count)), count - 1)
        held_out[random.permutation(np.flatnonzero(codes == code))[:size]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
