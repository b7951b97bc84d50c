"""The search: every head of a grid, cross-validated over images, as a plain `GridSearchCV`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.base import clone
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold, check_cv
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from featx._backbones.taps import choices_of_layers
from featx._embedder import ImageEmbedder
from featx._errors import InputError
from featx._public import public
from featx._selection.heads import choose_heads

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEIGHBOURS = "head__n_neighbors"


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
        given = self.get_params(deep=False)["param_grid"]
        grids = given if isinstance(given, list) else []
        if any(_NEIGHBOURS in grid for grid in grids):
            splits = check_cv(self.cv, y, classifier=True).split(X, y, params.get("groups"))
            n_fitted = min(len(fitted) for fitted, _ in splits)
            self.set_params(param_grid=[_possible(grid, n_fitted) for grid in grids])
        try:
            with threadpool_limits(1, user_api="blas"):
                super().fit(X, y, **params)
        finally:
            self.set_params(param_grid=given)
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


def _possible(grid: dict[str, Any], n_fitted: int) -> dict[str, Any]:
    """Leave out numbers of neighbours that exceed the images of the smallest training fold."""
    if _NEIGHBOURS not in grid:
        return grid
    counts = [count for count in grid[_NEIGHBOURS] if count <= n_fitted]
    return grid | {_NEIGHBOURS: counts or [n_fitted]}


@public
def head_search(
    heads: Any = "all",
    *,
    embedder: ImageEmbedder | str | None = None,
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
    heads : "all", str, classifier or iterable of them, default="all"
        Any of ``"logistic_regression"``, ``"linear_svm"``, ``"rbf_svm"``, ``"random_forest"`` and
        ``"k_nearest_neighbors"``, each with its scaling and a small grid; a classifier is tried as
        it is, on the scaling of the others.
    embedder : ImageEmbedder or str, optional
        What turns images into embeddings, or the name of its network; by default
        ``ImageEmbedder()``.
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
        As `GridSearchCV` takes it. One of probabilities, such as ``"roc_auc_ovr"``, makes heads
        that have none calibrated ones, at four fits for each of their candidates and folds.
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
    if isinstance(scoring, str) and get_scorer(scoring)._response_method == "predict_proba":
        chosen = [head.with_probabilities() for head in chosen]
    if not isinstance(embedder, ImageEmbedder):
        embedder = ImageEmbedder() if embedder is None else ImageEmbedder(embedder)
    if embedder.on_error == "nan":
        raise InputError(
            "Got an embedder with on_error='nan' but expected on_error='raise': most heads refuse "
            "NaN rows; leave unreadable images out before the search, or impute in a Pipeline of "
            "your own"
        )
    if isinstance(cv, int):
        cv = StratifiedKFold(cv, shuffle=True, random_state=random_state)
    if hasattr(cv, "__next__"):  # folds that can be gone through once only
        cv = list(cv)
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
