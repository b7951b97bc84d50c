"""Evidence: how probable targets are under a linear model, at its best two variances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize_scalar

if TYPE_CHECKING:
    from featx._selection.projection import Projection

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

    Parameters
    ----------
    projection : Projection
        Of the targets on the features.

    Returns
    -------
    ndarray of float64, shape (n_targets,)
        :math:`\sup_t L(t) / N`, to about 1e-12. Both ends count: :math:`t \to \infty`, where the
        features are of no use (nor are there any where the rank is 0), and, when the features can
        reproduce every target (rank N), :math:`t \to 0`. When a target lies in their span although
        not every one does, L has no bound and the value is ``inf``.

    Examples
    --------
    >>> import numpy as np
    >>> from featx._selection.projection import project_targets
    >>> features = np.array([[1.0], [1.0], [-1.0]])
    >>> maximum_log_evidence(project_targets(features, np.array([[1.0], [0.8], [-0.9]]))).round(4)
    array([-0.0319])
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
        projection.scale,
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
