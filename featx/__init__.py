"""featx: images become the embeddings of a frozen, pretrained CNN, inside scikit-learn.

The public names stand in ``__init__.pyi`` and are loaded when first used, so that ``import featx``
costs nothing: neither torch nor pandas nor scikit-learn is imported by it.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any

from featx._public import rooms_of_names
from featx._version import __version__ as __version__

_ROOMS = rooms_of_names()

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    # The collector would walk again and again through what torch, scipy and pandas make to stay:
    # 1 s of the 3.4 s that it takes to import them.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        value = getattr(importlib.import_module(_ROOMS[name]), name)
    finally:
        if was_enabled:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
