"""Figures of networks that are had without building them: they were measured once, and shipped.

``figures.json`` is written by ``tests/backbones/make_figures.py``.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import NamedTuple


class Figures(NamedTuple):
    """What is known of a network whose weights are elsewhere; None is unknown.

    Attributes
    ----------
    dimension : int or None
        Length of the penultimate vector.
    parameters : int or None
        Number of parameters, the classifier's included.
    gflops : float or None
        10⁹ multiply-adds of one image at the network's own size.
    """

    dimension: int | None = None
    parameters: int | None = None
    gflops: float | None = None


def network_figures(name: str) -> Figures:
    """Return the figures of a network by its full name, such as ``"timm/resnet18.a1_in1k"``.

    Examples
    --------
    >>> network_figures("timm/resnet18.a1_in1k").dimension
    512
    >>> network_figures("timm/of_tomorrow").dimension is None
    True
    """
    return Figures(*_all_figures().get(name, ()))


@functools.cache
def _all_figures() -> dict[str, list[int | float | None]]:
    text = (resources.files("featx._backbones") / "figures.json").read_text(encoding="utf-8")
    networks: dict[str, list[int | float | None]] = json.loads(text)["networks"]
    return networks
