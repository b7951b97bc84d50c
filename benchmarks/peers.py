"""The ways people embed images without featx, each given the same network and the same weights.

A contender is a function that builds what is built once and returns ``embed(paths)``, which reads
the files and returns one vector a row. It raises `LeftOut` where it cannot run. Nothing is
downloaded: where a library would fetch weights by name, it is handed the network instead.

Optional, and left out where they are not installed::

    pip install embetter img2vec_pytorch transformers sentence-transformers
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn

from featx import FrozenBackbone, load_backbone

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from featx._images.preprocess import Preprocessing

    Embed = Callable[[list[str]], np.ndarray | None]

BATCH_SIZE = 32


class LeftOut(Exception):  # noqa: N818 - not an error: this contender does not take part
    """Says why a contender cannot run here."""


@dataclass(frozen=True)
class Setting:
    """What every contender is given: a network, its weights, a precision and a device.

    Attributes
    ----------
    name : {"efficientnet_lite0", "resnet50"}
        Which network.
    caffe_weights : Path or None
        The file of the first ResNet-50; without it ResNet-50 has timm's recipe and random weights.
    precision : {"float32", "bfloat16"}
        The arithmetic of those contenders that can choose.
    device : {"cpu", "cuda"}
        Where the network runs.
    """

    name: str
    caffe_weights: Path | None
    precision: str
    device: str

    @property
    def is_caffe(self) -> bool:
        """Whether the network is torchvision's module and takes BGR from 0 to 255."""
        return self.name == "resnet50" and self.caffe_weights is not None

    @cached_property
    def backbone(self) -> FrozenBackbone:
        """The network with its weights and its recipe for images."""
        if self.name == "efficientnet_lite0":
            return load_backbone(self.name)
        if self.caffe_weights is None:
            return load_backbone("timm/resnet50.a1_in1k", weights=None)
        # How it is built stands beside the test that proves it right.
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "backbones"))
        from caffe_resnet import caffe_resnet50

        return caffe_resnet50(self.caffe_weights)

    def network(self) -> nn.Module:
        """Return a copy of the bare network without its classifier, in evaluation mode."""
        network = copy.deepcopy(self.backbone.module)
        if self.is_caffe:
            network.fc = nn.Identity()
        else:
            network.reset_classifier(0)
        return network.eval()

    def transform(self) -> Callable[[Image.Image], torch.Tensor]:
        """Return the transform of the weights' own authors, from a PIL image to a tensor."""
        if not self.is_caffe:
            from timm.data import create_transform, resolve_model_data_config

            config = resolve_model_data_config(self.backbone.module)
            return create_transform(**config, is_training=False)
        from torchvision import transforms

        recipe = self.backbone.preprocessing
        bilinear = transforms.InterpolationMode.BILINEAR
        return transforms.Compose(
            [
                transforms.Resize(recipe.resize, bilinear),
                transforms.CenterCrop(recipe.image_size),
                transforms.ToTensor(),
                Normalise(recipe),
            ]
        )

    def autocast(self) -> torch.autocast:
        """Return the context in which a network computes in the precision asked for."""
        is_half = self.precision == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16, enabled=is_half)


class Normalise(nn.Module):
    """Brings RGB in [0, 1] to the numbers the weights were trained with."""

    def __init__(self, recipe: Preprocessing) -> None:
        super().__init__()
        self.scale = recipe.pixel_scale
        self.swaps_channels = recipe.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(recipe.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(recipe.std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float (..., 3, height, width) to the same shape."""
        if self.swaps_channels:
            images = images.flip(-3)
        return (images * self.scale - self.mean) / self.std


class Photographs(torch.utils.data.Dataset[torch.Tensor]):
    """What a person writes for a DataLoader."""

    def __init__(self, paths: list[str], transform: Callable[..., torch.Tensor]) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))


def build_loop(setting: Setting) -> Embed:
    """Take one image after the other, in float32: the reference of all cosines."""
    network, transform = setting.network().to(setting.device), setting.transform()
    torch.backends.cudnn.allow_tf32 = False

    def embed(paths: list[str]) -> np.ndarray:
        images = Photographs(paths, transform)
        with torch.inference_mode():
            vectors = [network(images[row][None].to(setting.device)) for row in range(len(paths))]
        return torch.cat(vectors).cpu().numpy()

    return embed


def count_loader_workers(setting: Setting) -> int:
    """Return 2 on a CPU, whose cores the network needs, and one a core beside a GPU."""
    return 2 if setting.device == "cpu" else max(2, len(os.sched_getaffinity(0)))


def build_loader(setting: Setting) -> Embed:
    """Take batches of 32 from a DataLoader, without gradients."""
    network, transform = setting.network().to(setting.device), setting.transform()
    workers = count_loader_workers(setting)

    def embed(paths: list[str]) -> np.ndarray:
        images = Photographs(paths, transform)
        loader = torch.utils.data.DataLoader(images, BATCH_SIZE, num_workers=workers)
        with torch.inference_mode():
            vectors = [network(batch.to(setting.device)).cpu() for batch in loader]
        return torch.cat(vectors).numpy()

    return embed


def build_expert_loader(setting: Setting) -> Embed:
    """Do the same in channels_last, in the precision asked for, from pinned memory to a GPU."""
    network, transform = setting.network().to(setting.device), setting.transform()
    network = network.to(memory_format=torch.channels_last)
    is_cuda, workers = setting.device == "cuda", count_loader_workers(setting)
    batch_size = 128 if is_cuda else BATCH_SIZE

    def embed(paths: list[str]) -> np.ndarray:
        images = Photographs(paths, transform)
        loader = torch.utils.data.DataLoader(
            images, batch_size, num_workers=workers, pin_memory=is_cuda
        )
        vectors = []
        with torch.inference_mode(), setting.autocast():
            for batch in loader:
                moved = batch.to(
                    setting.device, non_blocking=True, memory_format=torch.channels_last
                )
                vectors.append(network(moved))
        return torch.cat(vectors).float().cpu().numpy()

    return embed


def build_embetter(setting: Setting) -> Embed:
    """Run embetter as it is shipped: the network in training mode, recording gradients.

    Its TimmEncoder never calls ``eval()``, so that BatchNorm normalises each image by its own
    statistics: these are not the vectors of the weights.
    """
    return _build_embetter(setting, is_eval=False)


def build_embetter_in_eval_mode(setting: Setting) -> Embed:
    """Run embetter after its user has called ``encoder.model.eval()``."""
    return _build_embetter(setting, is_eval=True)


def _build_embetter(setting: Setting, *, is_eval: bool) -> Embed:
    vision = _import("embetter.vision", "embetter")
    if setting.device != "cpu":
        raise LeftOut("it runs on the CPU only")
    import timm

    # timm.create_model returns networks in training mode.
    network, transform = setting.network().train(mode=not is_eval), setting.transform()
    timm.create_model = lambda *_, **__: network
    encoder = vision.TimmEncoder("tf_efficientnet_lite0")
    # Of a network that is not timm's it does not know the recipe.
    encoder.transform_img = transform
    loader = vision.ImageLoader()
    return lambda paths: np.asarray(encoder.transform(loader.transform(paths)))


class _WithParts(nn.Module):
    """A network of timm with the parts that img2vec looks for in one of torchvision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.features = _Features(network)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.avgpool(self.features(batch))


class _Features(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.network.forward_features(batch)


def build_img2vec(setting: Setting) -> Embed:
    """Run img2vec in lists of 32. It squashes each image to a square, so its cosines are lower.

    It always normalises with the statistics of ImageNet; here it is given those of the weights.
    """
    img_to_vec = _import("img2vec_pytorch.img_to_vec", "img2vec_pytorch")
    network = setting.network() if setting.is_caffe else _WithParts(setting.network())
    # What it would download these weights with.
    model = "resnet50" if setting.name == "resnet50" else "efficientnet_b0"
    setattr(img_to_vec, model, lambda **_: network)
    extractor = img_to_vec.Img2Vec(cuda=setting.device == "cuda", model=model)
    extractor.transforms.transforms[-1] = Normalise(setting.backbone.preprocessing)

    def embed(paths: list[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(paths), BATCH_SIZE):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH_SIZE]]
            vectors.append(extractor.get_vec(images))
        return np.concatenate(vectors)

    return embed


def build_transformers(setting: Setting) -> Embed:
    """Run the pipeline of transformers for image features, in batches of 32."""
    transformers = _import("transformers", "transformers")
    dtype = getattr(torch, setting.precision)
    with tempfile.TemporaryDirectory() as folder:
        save_for_transformers(setting, Path(folder))
        pipeline = transformers.pipeline(
            "image-feature-extraction",
            folder,
            device=setting.device,
            dtype=dtype,
            batch_size=BATCH_SIZE,
            pool=True,
            return_tensors=True,
        )
    return lambda paths: torch.cat(pipeline(paths)).flatten(1).float().cpu().numpy()


def build_sentence_transformers(setting: Setting) -> Embed:
    """Run sentence-transformers, whose mean over the last map is the same vector."""
    library = _import("sentence_transformers", "sentence-transformers")
    dtype = getattr(torch, setting.precision)
    with tempfile.TemporaryDirectory() as folder:
        save_for_transformers(setting, Path(folder))
        model = library.SentenceTransformer(
            folder, device=setting.device, model_kwargs={"dtype": dtype}
        )

    def embed(paths: list[str]) -> np.ndarray:
        images = [Image.open(path).convert("RGB") for path in paths]
        tensors = model.encode(
            images, batch_size=BATCH_SIZE, convert_to_tensor=True, show_progress_bar=False
        )
        return tensors.float().cpu().numpy()

    return embed


def save_for_transformers(setting: Setting, folder: Path) -> None:
    """Write the network as a checkpoint of timm lies on the hub: a config and safetensors."""
    if setting.is_caffe:
        raise LeftOut("it builds networks by their name in timm, and this one has none there")
    from safetensors.torch import save_file

    os.environ["HF_HUB_OFFLINE"] = "1"
    network = setting.network()
    recipe = {
        key: value
        for key, value in network.pretrained_cfg.items()
        if key not in ("url", "hf_hub_id")
    }
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "architecture": recipe["architecture"],
        "num_classes": recipe["num_classes"],
        "num_features": network.num_features,
        "pretrained_cfg": recipe,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        f"timm_model.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _import(module: str, distribution: str) -> ModuleType:
    # Before the first import: they read it then.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LeftOut(f"pip install {distribution} ({error})") from error


PEERS: dict[str, tuple[str, Callable[[Setting], Embed]]] = {
    "embetter": ("embetter, as shipped", build_embetter),
    "embetter-eval": ("embetter, in eval mode", build_embetter_in_eval_mode),
    "img2vec": ("img2vec", build_img2vec),
    "transformers": ("transformers, pipeline", build_transformers),
    "sentence-transformers": ("sentence-transformers", build_sentence_transformers),
    "loop": ("{library}, one by one (reference)", build_loop),
    "loader": ("{library} + DataLoader", build_loader),
    "expert": ("{library} + DataLoader, expert", build_expert_loader),
}
"""Of each contender's key the words for the table, and what builds it."""
