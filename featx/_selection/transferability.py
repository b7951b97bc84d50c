"""Transferability: how well embeddings would serve a classifier, told without tuning one.

Every score takes what a network makes of labelled images, and greater is better. Scores of
different embeddings of the same images can be compared; those of different images cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from featx._labels import check_embeddings, check_folds, one_hot
from featx._selection.heads import choose_heads

PROBE_FOLDS = 3

# The middle of the grid that a search tries; the scores of photographs move little around it.
_PROBE_C = 30.0

# The evidence is smooth over such a step of the logarithm of the ratio: each of its terms changes
# over several of them.
_STEP = 0.25

# How far beyond the outermost singular values the ratio is sought; from there on the evidence is
# its limit to as many digits.
_MARGIN = 1e10

# Of the logarithm of the ratio. At a maximum the evidence is flat, so that its own error is of the
# order of the square.
_TOLERANCE = 1e-8

# A gain per image that is not worth looking for.
_NEGLIGIBLE = 1e-13


def log_me(embeddings: Any, labels: Any) -> float:
    r"""Return LogME, the logarithm of the maximum evidence of a linear model, per image.

    For each class the target is 1 for its images and 0 for the others. Under a linear model
    without an intercept, :math:`y = F w + e` with :math:`w \sim N(0, I / \alpha)` and
    :math:`e \sim N(0, I / \beta)`, the evidence :math:`p(y \mid F, \alpha, \beta)` says how well
    the embeddings explain the class when all weights are averaged over, so that it does not
    reward overfitting. LogME is its logarithm at the best :math:`\alpha` and :math:`\beta`, divided
    by the number of images, and averaged over the classes.

    It does not change when all embeddings are multiplied by a number. It is ``inf`` when there are
    more images than the rank of the embeddings and these reproduce a class to the rounding of
    float64: its evidence has no bound.

    It is the supremum of the evidence rather than where some number of fixed-point steps ends (the
    authors' code makes eleven): see `maximum_log_evidence`. The embeddings are neither centred nor
    scaled, as in the paper. Constant ones have the score of no features.

    References
    ----------
    K. You, Y. Liu, J. Wang and M. Long, LogME: Practical Assessment of Pre-trained Models for
    Transfer Learning, ICML 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from featx._selection.transferability import log_me
    >>> random = np.random.default_rng(0)
    >>> labels = np.repeat(["cat", "dog"], 50)
    >>> noise = random.normal(size=(100, 8))
    >>> telling = noise + 3 * (labels == "dog")[:, None]
    >>> log_me(telling, labels) > log_me(noise, labels)
    True
    """
    features, codes = check_embeddings(embeddings, labels)
    return float(maximum_log_evidence(project_targets(features, one_hot(codes))).mean())


def nearest_neighbour_score(embeddings: Any, labels: Any, *, n_neighbors: int = 5) -> float:
    """Return the share of images whose class their nearest neighbours among the others tell.

    Each image is classified by the majority of its neighbours, itself left out; ties go to the
    classes of the nearer ones. The embeddings are standardised and scaled to unit length, as for
    the heads of a search.

    References
    ----------
    T. Cover and P. Hart, Nearest neighbor pattern classification, IEEE Transactions on Information
    Theory 13, 1967.

    Examples
    --------
    >>> from featx._selection.transferability import nearest_neighbour_score
    >>> embeddings = [[0, 1], [0, 2], [0.1, 1], [1, 0], [2, 0], [1, 0.1]]
    >>> nearest_neighbour_score(embeddings, list("aaabbb"), n_neighbors=1)
    1.0
    """
    features, codes = check_embeddings(embeddings, labels)
    count = min(n_neighbors, len(features) - 1)
    (head,) = choose_heads("k_nearest_neighbors")
    unit = head.scaler.fit_transform(features)
    # Asked without images of its own, it leaves each image out of its neighbours.
    neighbours = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(unit)
    classes = codes[neighbours.kneighbors(return_distance=False)]
    # A vote each, and for ties a little more to the nearer: all of it together is half a vote.
    votes = np.zeros((len(codes), codes.max() + 1))
    for place in range(count):
        weight = 1 + (count - place) / (count * (count + 1))
        votes[np.arange(len(codes)), classes[:, place]] += weight
    return float((votes.argmax(axis=1) == codes).mean())


def linear_probe_score(embeddings: Any, labels: Any) -> float:
    """Return the cross-validated accuracy of a logistic regression, with nothing tuned.

    It is the head ``"logistic_regression"`` of a search with one strength of its penalty, C = 30,
    and its scaling, learnt in each of `PROBE_FOLDS` stratified, shuffled folds: the dearest of the
    scores, and what they all approximate.

    Examples
    --------
    >>> import numpy as np
    >>> from featx._selection.transferability import linear_probe_score
    >>> labels = np.repeat(["cat", "dog"], 50)
    >>> noise = np.random.default_rng(0).normal(size=(100, 8))
    >>> telling = noise + 9 * np.outer(labels == "dog", [1, -1, 0, 0, 0, 0, 0, 0])
    >>> linear_probe_score(telling, labels)
    1.0
    """
    features, codes = check_embeddings(embeddings, labels)
    check_folds(labels, PROBE_FOLDS, "leave the linear probe out")
    (head,) = choose_heads("logistic_regression")
    probe = make_pipeline(head.scaler, head.classifier.set_params(C=_PROBE_C))
    folds = StratifiedKFold(PROBE_FOLDS, shuffle=True, random_state=0)
    # The matrices are small: several threads for each product cost more than they save.
    with threadpool_limits(1, user_api="blas"):
        return float(cross_val_score(probe, features, codes, cv=folds).mean())


def maximum_log_evidence(projection: Projection) -> np.ndarray:
    r"""Return the greatest log evidence of each target under a linear model, per image.

    The model is :math:`y = F w + e` with :math:`w \sim N(0, I / \alpha)` and
    :math:`e \sim N(0, I / \beta)`. With the singular values :math:`\sigma_i` of F, the squared
    coordinates :math:`z_i^2` of y along its left vectors, the squared length :math:`r` of what
    remains of y, and :math:`t = \alpha / \beta`, the best :math:`\beta` for a given ratio is
    :math:`N / E(t)`, which leaves one variable:

    .. math:: 2 L(t) = N \log \frac{N}{E(t)} - N \log 2 \pi - N
        + \sum_i \log \frac{t}{\sigma_i^2 + t}, \qquad
        E(t) = r + \sum_i \frac{t z_i^2}{\sigma_i^2 + t}

    The authors of LogME iterate :math:`\alpha` and :math:`\beta` to a fixed point instead
    (MacKay, 1992), which is a stationary point of the same L but may be a lesser one, and is
    reached slowly where the maximum is flat. Here L is evaluated on a grid over all ratios at
    which it still changes, and each of its maxima there is refined to 1e-8 in :math:`\log t`.

    It is :math:`\sup_t L(t) / N` to about 1e-12, for each target. Both ends count:
    :math:`t \to \infty`, where the features are of no use (nor are there any where the rank is 0),
    and, when the features can reproduce every target (rank N), :math:`t \to 0`. When a target lies
    in their span although not every one does, L has no bound and the value is ``inf``.
    """
    rows, squares, residuals = projection.rows, projection.squares, projection.residuals
    lengths = projection.energies.sum(axis=0) + residuals
    best = _from_error(lengths, rows)
    if projection.rank == 0:
        return best / rows
    coefficients = (projection.energies / squares[:, np.newaxis]).sum(axis=0)
    if projection.rank == rows:
        best = np.maximum(best, _from_error(coefficients, rows) - np.log(squares).sum() / 2)
    grid = _ratios(squares, residuals, coefficients)
    values = _log_evidence(grid, projection)
    for target in range(values.shape[1]):
        best[target] = max(best[target], _refined(grid, values[:, target], projection, target))
    best[(residuals == 0) & (projection.rank < rows)] = np.inf
    return best / rows


def _from_error(error: np.ndarray, rows: int) -> np.ndarray:
    """Return the log evidence without its determinant."""
    density: np.ndarray = rows / 2 * (np.log(rows / error) - np.log(2 * np.pi) - 1)
    return density


def _ratios(squares: np.ndarray, residuals: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return the logarithms of the ratios between which the evidence changes."""
    # Where little remains, the noise that explains it is far below the least singular value.
    is_partial = (residuals > 0) & (coefficients > 0)
    remaining = residuals[is_partial] / coefficients[is_partial]
    least = min(squares[-1], remaining.min(initial=np.inf))
    low, high = np.log(least / _MARGIN), np.log(squares[0] * _MARGIN)
    return np.linspace(low, high, int((high - low) / _STEP) + 2)


def _log_evidence(log_ratios: np.ndarray, projection: Projection) -> np.ndarray:
    """Return the log evidence at each ratio and of each target."""
    # t / (s + t), written so that neither a great t nor a small one loses digits.
    ratio = np.exp(log_ratios)[:, np.newaxis]
    kept = ratio / (projection.squares + ratio)
    log_kept = -np.log1p(projection.squares / ratio)
    error = kept @ projection.energies + projection.residuals
    evidence: np.ndarray = (
        _from_error(error, projection.rows) + log_kept.sum(axis=1)[:, np.newaxis] / 2
    )
    return evidence


def _refined(grid: np.ndarray, values: np.ndarray, projection: Projection, target: int) -> float:
    """Return the greatest of the maxima that a grid shows."""
    single = type(projection)(
        projection.rows,
        projection.squares,
        projection.energies[:, [target]],
        projection.residuals[[target]],
    )

    def cost(log_ratio: float) -> float:
        return -float(_log_evidence(np.array([log_ratio]), single)[0, 0])

    inner = values[1:-1]
    is_peak = (inner >= values[:-2]) & (inner >= values[2:])
    # What refining can gain, several times over: most peaks are too low, or rounding of a limit.
    gain = np.abs(values[:-2] - 2 * inner + values[2:])
    is_candidate = (inner + gain >= values.max()) & (gain > _NEGLIGIBLE * projection.rows)
    peaks = np.flatnonzero(is_peak & is_candidate) + 1
    best = float(values.max())
    for peak in peaks:
        bounds = (grid[peak - 1], grid[peak + 1])
        found = minimize_scalar(
            cost, bounds=bounds, method="bounded", options={"xatol": _TOLERANCE}
        )
        best = max(best, -float(found.fun))
    return best


@dataclass(frozen=True)
class Projection:
    """What a linear model of features can see of some targets.

    Attributes
    ----------
    rows : int
        Number of images.
    squares : ndarray of float64, shape (rank,)
        The squared singular values of the features, scaled to a largest magnitude of 1, greatest
        first.
    energies : ndarray of float64, shape (rank, n_targets)
        The squared coordinates of each target along the left singular vectors.
    residuals : ndarray of float64, shape (n_targets,)
        The squared length of what of each target lies outside of their span; exactly 0 where that
        is no more than rounding.
    """

    rows: int
    squares: np.ndarray
    energies: np.ndarray
    residuals: np.ndarray

    @property
    def rank(self) -> int:
        """Number of directions that are more than rounding."""
        return len(self.squares)


def project_targets(features: np.ndarray, targets: np.ndarray) -> Projection:
    """Return the targets in the directions of the features.

    The features are decomposed themselves: their squared matrix would have the square of their
    condition number, and half of the digits with it. Of tall features a QR decomposition of
    features and targets side by side gives the small triangle whose singular values and left
    vectors are needed, the coordinates of the targets, and their residuals, without ever making
    the tall matrix of left vectors (T. Chan, An Improved Algorithm for Computing the Singular Value
    Decomposition, ACM Transactions on Mathematical Software 8, 1982).

    Directions whose singular value is at most ``max(rows, dimension)`` times the rounding of
    float64 of the greatest one, as `numpy.linalg.matrix_rank` has it, count as outside.
    """
    rows, dimension = features.shape
    rounding = max(rows, dimension) * np.finfo(np.float64).eps
    scale = float(np.abs(features).max()) or 1.0
    scaled = features / scale
    if rows >= dimension:
        triangle = _triangle(np.hstack([scaled, targets]))
        square, inside = triangle[:dimension, :dimension], triangle[:dimension, dimension:]
        outside = triangle[dimension:, dimension:]
    else:
        square, inside = _triangle(scaled.T).T, targets
        outside = np.zeros((0, targets.shape[1]))
    left, singular, _ = np.linalg.svd(square)
    rank = int((singular > rounding * singular[0]).sum())
    energies = np.square(left.T @ inside)
    residuals = energies[rank:].sum(axis=0) + np.square(outside).sum(axis=0)
    residuals[residuals <= rounding**2 * np.square(targets).sum(axis=0)] = 0
    return Projection(rows, np.square(singular[:rank]), energies[:rank], residuals)


def _triangle(matrix: np.ndarray) -> np.ndarray:
    triangle: np.ndarray = np.linalg.qr(matrix, mode="r")  # type: ignore[assignment]  # typed for every mode
    return triangle
