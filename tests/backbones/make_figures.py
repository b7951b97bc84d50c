"""Measure dimension, parameters and GFLOPs of every catalogued network, without its weights.

``python tests/backbones/make_figures.py`` writes ``featx/_backbones/figures.json`` for the
installed versions of torchvision and timm (a quarter of an hour on one core). timm's networks are
built on torch's meta device, so nothing is downloaded and nothing is computed; torchvision
publishes all but the dimension itself. A figure that cannot be had this way is null.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

FILE = Path(__file__).parents[2] / "featx" / "_backbones" / "figures.json"


def main() -> None:
    """Write the figures; names on the command line measure these alone, and print them."""
    warnings.simplefilter("ignore")
    if sys.argv[1:]:
        print({name: _measure(name) for name in sys.argv[1:]})
        return
    figures = {f"torchvision/{name}": (_dimension(name), None, None) for name in _torchvision()}
    figures |= {f"timm/{name}": _measure(name) for name in timm.list_pretrained()}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in figures.items())
    versions = {name: version(name) for name in ("timm", "torchvision")}
    header = json.dumps({"versions": versions, "columns": ["dimension", "parameters", "gflops"]})
    FILE.write_text(f'{header[:-1]}, "networks": {{\n{rows}\n}}}}\n')


def _torchvision() -> list[str]:
    names: list[str] = models.list_models(module=models)
    return names


def _dimension(name: str) -> int:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = models.get_model(name, weights=None, **options)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if layers:
        return layers[-1].in_features
    # SqueezeNet classifies with a convolution.
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)][-1].in_channels


def _measure(name: str) -> tuple[int | None, int | None, float | None]:
    try:
        with torch.device("meta"):
            module: Any = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        print(name, type(error).__name__, str(error)[:100], file=sys.stderr)
        return None, None, None
    parameters = sum(parameter.numel() for parameter in module.parameters())
    dimension = getattr(module, "head_hidden_size", None) or getattr(module, "num_features", None)
    return dimension, parameters, _gflops(name, module)


def _gflops(name: str, module: nn.Module) -> float | None:
    """Return 10^9 multiply-adds of one image, which is what the field calls GFLOPs."""
    size: tuple[int, ...] = timm.get_pretrained_cfg(name).input_size
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            module(torch.empty(1, *size, device="meta"))
    except Exception as error:  # whatever fails on the meta device has no figure
        print(name, type(error).__name__, str(error)[:100], file=sys.stderr)
        return None
    total = counter.get_total_flops() / 2e9
    return round(total, 2 - math.floor(math.log10(total))) if total else None


if __name__ == "__main__":
    main()
