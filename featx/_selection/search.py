"""The search: every head of a grid, cross-validated over images, as a plain `GridSearchCV`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from featx._backbones.taps import choices_of_layers
from featx._embedder import ImageEmbedder
from featx._errors import InputError
from featx._public import public
from featx._selection.heads import choose_heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@public
class HeadSearch(GridSearchCV):
    """A grid search over heads and layers; of `head_search`.

    Its parameters, attributes and methods are those of `sklearn.model_selection.GridSearchCV`.

    See Also
    --------
    featx.head_search : Returns it, with an example.
    """

    def fit(self, X: Any, y: Any = None, **params: Any) -> HeadSearch:
        """Run the search, with one thread for each product of matrices.

        Parameters
        ----------
        X : sequence of images
            As `ImageEmbedder` takes them.
        y : array-like of shape (n_images,)
            Their labels.
        **params : dict
            As `GridSearchCV` takes them, such as ``groups``.

        Returns
        -------
        self
        """
        with threadpool_limits(1, user_api="blas"):
            super().fit(X, y, **params)
        grids = self.param_grid if isinstance(self.param_grid, list) else []
        tried = [
            (grid["embedder__layers"][0], grid["embedder__pooling"][0])
            for grid in grids
            if "embedder__layers" in grid and "embedder__pooling" in grid
        ]
        if tried and hasattr(self, "best_estimator_"):
            # Layers that lost are not computed for every image that is ever predicted.
            embedder = self.best_estimator_.named_steps["embedder"]
            embedder.set_params(
                also_cache=[kept for kept in embedder.also_cache if kept not in tried]
            )
        return self


@public
def head_search(
    heads: str | Iterable[str] = "all",
    *,
    embedder: ImageEmbedder | None = None,
    layers: Sequence[Any] | None = None,
    backbones: Sequence[str] | None = None,
    cv: Any = 5,
    scoring: Any = "accuracy",
    n_jobs: int | None = None,
    random_state: int | None = 0,
) -> GridSearchCV:
    """Return a search over heads on the embeddings of images.

    What is returned is scikit-learn's own `GridSearchCV`, unfitted, over a `Pipeline` of three
    steps, ``"embedder"``, ``"scaler"`` and ``"head"``; fit it with images and labels, and change it
    as any other. Each distinct image goes through a network once, whatever the number of
    candidates, folds and workers, as long as the embedder has a cache.

    Parameters
    ----------
    heads : "all", str or iterable of str, default="all"
        Any of ``"logistic_regression"``, ``"linear_svm"``, ``"rbf_svm"``, ``"random_forest"`` and
        ``"k_nearest_neighbors"``, each with its scaling and a small grid.
    embedder : ImageEmbedder, optional
        What turns images into embeddings; by default ``ImageEmbedder()``.
    layers : sequence, optional
        Layers to choose among as well: each a value of the embedder's ``layers``, or a pair of
        ``layers`` and ``pooling``, such as ``("blocks.4", "grid2")``. All of them are kept in the
        cache at the first forward of an image, so that it is the only one.
    backbones : sequence of str, optional
        Networks to choose among as well; by default the embedder's own.
    cv : int, splitter or iterable, default=5
        A number of folds makes stratified, shuffled ones with ``random_state``; anything else is
        handed to `GridSearchCV`.
    scoring : str or callable, default="accuracy"
        As `GridSearchCV` takes it.
    n_jobs : int, optional
        Worker processes.
    random_state : int or None, default=0
        Seed of the folds and of the heads that draw random numbers.

    Returns
    -------
    HeadSearch
        A `sklearn.model_selection.GridSearchCV`, unfitted. An unreadable image raises, it is not
        scored as a failed candidate.

    Raises
    ------
    InputError
        When a head is not known, or the embedder would hand NaN rows to heads that refuse them.

    Notes
    -----
    The heads' matrices are small, and the several threads that numerical libraries start for each
    product cost more than they save: ``fit`` limits them to one.

    Examples
    --------
    >>> from featx import head_search
    >>> search = head_search(["logistic_regression", "rbf_svm"], cv=3)
    >>> list(search.estimator.named_steps)
    ['embedder', 'scaler', 'head']
    >>> [sorted(grid) for grid in search.param_grid]
    [['head', 'head__C', 'scaler'], ['head', 'head__C', 'head__gamma', 'scaler']]
    """
    chosen = choose_heads(heads, random_state)
    embedder = ImageEmbedder() if embedder is None else embedder
    if embedder.on_error == "nan":
        raise InputError(
            "Got an embedder with on_error='nan' but expected on_error='raise': most heads refuse "
            "NaN rows; leave unreadable images out before the search, or impute in a Pipeline of "
            "your own"
        )
    if isinstance(cv, int):
        cv = StratifiedKFold(cv, shuffle=True, random_state=random_state)
    networks = {} if backbones is None else {"embedder__backbone": list(backbones)}
    choices: list[dict[str, list[Any]]] = [{}]
    if layers is not None:
        pairs = choices_of_layers("layers", layers)
        # One forward fills the cache for every layer that is tried.
        embedder = clone(embedder).set_params(also_cache=[*embedder.also_cache, *pairs])
        choices = [
            {"embedder__layers": [layer], "embedder__pooling": [pooling]}
            for layer, pooling in pairs
        ]
    grids = [
        {
            **networks,
            **choice,
            "scaler": [head.scaler],
            "head": [head.classifier],
            **{f"head__{name}": values for name, values in head.grid.items()},
        }
        for choice in choices
        for head in chosen
    ]
    steps = [("embedder", embedder), ("scaler", chosen[0].scaler), ("head", chosen[0].classifier)]
    return HeadSearch(
        Pipeline(steps), grids, cv=cv, scoring=scoring, n_jobs=n_jobs, error_score="raise"
    )
