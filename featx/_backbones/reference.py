"""What it takes to load a backbone again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneReference:
    """How a backbone can be loaded again, in another process or at another time.

    Attributes
    ----------
    name : str
        The name of the network, its tag included.
    weights : str or None
        ``"default"`` for the published weights of that name, the absolute path of a weights file,
        or None for random ones.
    image_size : int or None
        Side of the input in pixels; None for the network's own.
    sha256 : str
        Digest of the weights: of their file, or of the tensors where they come from none.

    Examples
    --------
    >>> BackboneReference("timm/resnet18.a1_in1k", "default", None, "0" * 64).name
    'timm/resnet18.a1_in1k'
    """

    name: str
    weights: str | None
    image_size: int | None
    sha256: str
