"""Files of weights for the tests: small networks, published and hidden where libraries look."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import timm
import torch
from safetensors.torch import save_file
from torchvision import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIMM_NAME = "timm/test_efficientnet.r160_in1k"
TIMM_ARCHITECTURE = "test_efficientnet"
TORCHVISION_NAME = "torchvision/shufflenet_v2_x0_5.IMAGENET1K_V1"
TORCHVISION_TAG = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1


def timm_tensors(seed: int = 7, **options: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a small network of timm, which nobody published."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = timm.create_model(TIMM_ARCHITECTURE, **options)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def torchvision_tensors(seed: int = 7) -> dict[str, torch.Tensor]:
    """Return the tensors of a small network of torchvision, which nobody published."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(models.shufflenet_v2_x0_5(weights=None).state_dict())


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def publish_with_digest(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a ``.pth`` file that has the beginning of its digest in its name."""
    folder.mkdir(exist_ok=True)
    draft = folder / "draft.pth"
    torch.save(tensors, draft)
    return draft.rename(folder / f"shufflenet-{sha256(draft)[:8]}.pth")


def fill_hugging_face_cache(
    folder: Path, write: Callable[[Path], None], file: str = "model.safetensors"
) -> Path:
    """Lay a file into a cache folder as huggingface_hub does: by digest, with a link to it.

    Returns the blob.
    """
    repository = folder / f"models--timm--{TIMM_NAME.removeprefix('timm/')}"
    commit = "c" * 40
    for name in ("refs", "blobs", f"snapshots/{commit}"):
        (repository / name).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    draft = repository / "blobs" / "draft"
    write(draft)
    blob = draft.rename(draft.with_name(sha256(draft)))
    (repository / "snapshots" / commit / file).symlink_to(blob)
    return blob


def write_timm_safetensors(file: Path) -> None:
    save_file(timm_tensors(), file)


def offsets(size: int, count: int = 10) -> list[int]:
    """Return places to cut a file at, from nothing to all but one byte."""
    return [step * (size - 1) // (count - 1) for step in range(count)]
