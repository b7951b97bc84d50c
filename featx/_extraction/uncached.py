"""An extractor that goes past the cache, with what is kept to run the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featx._extraction.extractor import Extractor
from featx._extraction.runtime import in_one_order, open_runtime

if TYPE_CHECKING:
    from featx._extraction.runtime import Runtime


class UncachedExtractor(Extractor):
    """Computes every distinct image anew and keeps nothing: what an image costs.

    The network runs as it does through the cache, from the exported graph that lies there.

    Parameters
    ----------
    *arguments, **settings
        As `Extractor` takes them.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._graphs = None if self._stores is None else self._stores.graphs
        self._stores = None

    def _open_runtime(self) -> Runtime:
        return open_runtime(
            self._backbone, in_one_order(self._computed_taps), self._plan, self._graphs
        )
