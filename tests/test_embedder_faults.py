"""Faults that are not the images': said at once, and never a row of a readable image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from featx import EmbeddingCache, FrozenBackbone, ImageEmbedder, load_image_folder
from featx._errors import ImageDecodeError, WeightsError
from featx._extraction import contents
from featx._extraction.onnx_runtime import OnnxRuntime
from featx._extraction.stream import EmbeddingStream
from featx._store import memo as memo_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sklearn.utils import Bunch

    from featx._extraction.parcels import OpenParcel

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def photos(make_image_folder: Callable[..., Path]) -> Bunch:
    return load_image_folder(make_image_folder({"red": 4, "green": 4}))


class Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm2d(3)
        self.classifier = nn.Linear(3, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.exp(1e4 * self.normalise(pixels).abs().amax((2, 3))))


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_a_network_that_puts_out_infinity_is_named_and_nothing_is_stored(
    photos: Bunch, private_cache: Path, on_error: str
) -> None:
    backbone = FrozenBackbone(Overflowing(), name="overflowing")
    with pytest.raises(WeightsError, match="overflowing puts out NaN or infinity"):
        ImageEmbedder(backbone, device="cpu", on_error=on_error).transform(photos.paths)
    assert not list(private_cache.rglob("*.arrow"))


def test_a_module_that_somebody_put_into_training_mode_stays_frozen(photos: Bunch) -> None:
    backbone = FrozenBackbone(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 2),
        )
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    backbone.module.train()
    ImageEmbedder(backbone, device="cpu", cache=None, runtime="torch").fit_transform(photos.paths)
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_file_beyond_the_limit_is_refused_whether_or_not_it_is_known(
    photos: Bunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo_module, "GRANULARITY_NS", -(10**10))
    embedder = ImageEmbedder(**TINY)
    embedder.transform(photos.paths)
    sizes = [Path(path).stat().st_size for path in photos.paths]
    with pytest.raises(ImageDecodeError, match=f"limit of {max(sizes) - 1:,} bytes"):
        embedder.set_params(max_file_bytes=max(sizes) - 1).transform(photos.paths)
    embedder.set_params(max_file_bytes=max(sizes)).transform(photos.paths)


def test_a_copy_of_a_file_that_vanished_is_still_read(
    photos: Bunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(photos.paths[0]).with_name("copy.png")
    copy.write_bytes(Path(photos.paths[0]).read_bytes())
    paths = [photos.paths[0], str(copy)]
    expected = ImageEmbedder(**TINY, cache=None).transform(paths)
    original = contents.Contents.parcels

    def read_then_delete(self: contents.Contents) -> Iterator[OpenParcel]:
        for parcel in original(self):
            self.drop(range(len(paths)))  # it is read again when it is decoded
            Path(paths[0]).unlink(missing_ok=True)
            yield parcel

    monkeypatch.setattr(contents.Contents, "parcels", read_then_delete)
    monkeypatch.setattr(EmbeddingStream, "parcel_images", lambda self, n_images: n_images)
    rows = ImageEmbedder(**TINY, cache=None).transform(paths)
    np.testing.assert_array_equal(rows, expected)


def test_images_that_cannot_be_decoded_cost_no_forward(
    tmp_path: Path, photos: Bunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = []
    for number in range(9):
        broken.append(str(tmp_path / f"{number}.png"))
        Path(broken[-1]).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]) * 40)
    forwards: list[int] = []
    run = OnnxRuntime.run

    def counted(self: OnnxRuntime, pixels: torch.Tensor, lanes: int = 1) -> list[np.ndarray]:
        forwards.append(len(pixels))
        return run(self, pixels, lanes)

    monkeypatch.setattr(OnnxRuntime, "run", counted)
    embedder = ImageEmbedder(**TINY, on_error="nan")
    embedder.transform(photos.paths)
    forwards.clear()
    with pytest.warns(UserWarning, match="9 of 17"):
        rows = embedder.transform([*broken, *photos.paths])
    assert forwards == []
    assert np.isnan(rows[:9]).all()
    assert np.isfinite(rows[9:]).all()


def test_a_cache_object_without_a_limit_works(photos: Bunch, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", max_bytes=None)
    rows = ImageEmbedder(**TINY, cache=cache).transform(photos.paths)
    np.testing.assert_array_equal(ImageEmbedder(**TINY, cache=cache).transform(photos.paths), rows)
