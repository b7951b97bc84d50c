"""Projection: targets in the directions of a matrix of features, by one decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Projection:
    """What a linear model of features can see of some targets.

    Attributes
    ----------
    rows : int
        Number of images.
    scale : float
        What the features were divided by: their largest magnitude, 1 where all are zero.
    squares : ndarray of float64, shape (rank,)
        The squared singular values of the features so scaled, greatest first.
    energies : ndarray of float64, shape (rank, n_targets)
        The squared coordinates of each target along the left singular vectors.
    residuals : ndarray of float64, shape (n_targets,)
        The squared length of what of each target lies outside of their span; exactly 0 where that
        is no more than rounding.
    """

    rows: int
    scale: float
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

    Parameters
    ----------
    features : ndarray of float64, shape (rows, dimension)
        Finite.
    targets : ndarray of float64, shape (rows, n_targets)
        Finite.

    Returns
    -------
    Projection
        Directions whose singular value is at most ``max(rows, dimension)`` times the rounding of
        float64 of the greatest one, as `numpy.linalg.matrix_rank` has it, count as outside.

    Examples
    --------
    >>> import numpy as np
    >>> projection = project_targets(np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]]), np.eye(3))
    >>> projection.rank, projection.residuals.round(12)
    (1, array([0.8, 0.2, 1. ]))
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
    return Projection(rows, scale, np.square(singular[:rank]), energies[:rank], residuals)


def _triangle(matrix: np.ndarray) -> np.ndarray:
    triangle: np.ndarray = np.linalg.qr(matrix, mode="r")  # type: ignore[assignment]  # typed for every mode
    return triangle
