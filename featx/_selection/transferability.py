"""Transferability: how well embeddings would serve a classifier, told without tuning one.

Every score takes what a network makes of labelled images, and greater is better. Scores of
different embeddings of the same images can be compared; those of different images cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from featx._errors import InputError
from featx._labels import (
    check_embeddings,
    check_folds,
    check_lengths,
    encode_labels,
    one_hot,
)
from featx._selection.evidence import maximum_log_evidence
from featx._selection.heads import choose_heads
from featx._selection.projection import project_targets

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

PROBE_FOLDS = 3

# The middle of the grid that a search tries; the scores of photographs move little around it.
_PROBE_C = 30.0

# Rows of float32 probabilities add up to one within far less, rows of logits do not.
_LARGEST_GAP_OF_A_SUM = 1e-3


def log_me(embeddings: Any, labels: Any) -> float:
    r"""Return LogME, the logarithm of the maximum evidence of a linear model, per image.

    For each class the target is 1 for its images and 0 for the others. Under a linear model
    without an intercept, :math:`y = F w + e` with :math:`w \sim N(0, I / \alpha)` and
    :math:`e \sim N(0, I / \beta)`, the evidence :math:`p(y \mid F, \alpha, \beta)` says how well
    the embeddings explain the class when all weights are averaged over, so that it does not
    reward overfitting. LogME is its logarithm at the best :math:`\alpha` and :math:`\beta`, divided
    by the number of images, and averaged over the classes.

    Parameters
    ----------
    embeddings : array-like of shape (n_images, dimension)
        Finite numbers; computed with in float64.
    labels : array-like of shape (n_images,)
        The class of each image: strings, numbers or anything else that can be told apart.

    Returns
    -------
    float
        Greater is better; it does not change when all embeddings are multiplied by a number.
        ``inf`` when there are more images than the rank of the embeddings and these reproduce a
        class to the rounding of float64: its evidence has no bound.

    Raises
    ------
    InputError
        When the embeddings are no finite matrix, or the labels are not one per row, are numbers
        of a regression, are missing, or all the same.

    Notes
    -----
    It is the supremum of the evidence rather than where some number of fixed-point steps ends (the
    authors' code makes eleven): see `featx._selection.evidence.maximum_log_evidence`. The
    embeddings are neither centred nor scaled, as in the paper. Constant ones have the score of no
    features.

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


def h_score(embeddings: Any, labels: Any) -> float:
    r"""Return the H-score, the variance between classes in units of the variance of all images.

    .. math:: H_\lambda = (1 - \lambda) \operatorname{tr}(\Sigma_\lambda^{-1} \Sigma_z), \qquad
        \Sigma_\lambda = (1 - \lambda) \Sigma + \lambda \frac{\operatorname{tr} \Sigma}{D} I

    with :math:`\Sigma` the covariance of the embeddings, :math:`\Sigma_z` that of their class means
    and :math:`\lambda` the shrinkage of Ledoit and Wolf (2004).

    It is the regularised score of Ibrahim et al. (2021). The original one of Bao et al. (2019),
    :math:`\lambda = 0`, inverts the bare covariance: with no more images than dimensions, which
    is usual here, it is the number of classes less one whatever the embeddings are.

    Parameters
    ----------
    embeddings : array-like of shape (n_images, dimension)
        Finite numbers; computed with in float64.
    labels : array-like of shape (n_images,)
        The class of each image.

    Returns
    -------
    float
        Between 0 and the number of classes less one; greater is better. 0 for constant embeddings.

    Raises
    ------
    InputError
        As `log_me` does.

    References
    ----------
    Y. Bao, Y. Li, S.-L. Huang et al., An Information-Theoretic Approach to Transferability in Task
    Transfer Learning, ICIP 2019.

    S. Ibrahim, N. Ponomareva and R. Mazumder, Newer is not always better: Rethinking
    transferability metrics, their peculiarities, stability and performance, 2021 (ECML PKDD 2022).

    Examples
    --------
    >>> import numpy as np
    >>> from featx._selection.transferability import h_score
    >>> labels = np.repeat(["cat", "dog"], 50)
    >>> noise = np.random.default_rng(0).normal(size=(100, 8))
    >>> h_score(noise + 3 * (labels == "dog")[:, None], labels) > h_score(noise, labels)
    True
    """
    features, codes = check_embeddings(embeddings, labels)
    centred = features - features.mean(axis=0)
    # Of constant columns only rounding is left, which a division would magnify.
    centred[:, np.ptp(features, axis=0) == 0] = 0
    targets = one_hot(codes)
    projection = project_targets(centred, targets)
    if projection.rank == 0:
        return 0.0
    variances = projection.squares / len(features)
    spread = variances.sum() / features.shape[1]
    shrinkage = _shrinkage(centred / projection.scale, variances)
    # With centred = U S V', a class mean is the projection of its indicator on U, times S V'.
    weights = variances / ((1 - shrinkage) * variances + shrinkage * spread)
    return float((1 - shrinkage) * (weights @ projection.energies / targets.sum(axis=0)).sum())


def leep(source_probabilities: Any, labels: Any) -> float:
    r"""Return LEEP, the log expected empirical prediction of a network's own classifier.

    A network that gives image i the probability :math:`\theta_{iz}` of its source class z predicts
    the target class through the empirical joint distribution
    :math:`P(y, z) = \frac1n \sum_{i: y_i = y} \theta_{iz}`:

    .. math:: T = \frac1n \sum_i \log \sum_z P(y_i \mid z) \, \theta_{iz}

    Parameters
    ----------
    source_probabilities : array-like of shape (n_images, n_source_classes)
        The probabilities that the source classifier gives, one row per image with the sum 1.
    labels : array-like of shape (n_images,)
        The class of each image in the task at hand.

    Returns
    -------
    float
        At most 0; greater is better.

    Raises
    ------
    InputError
        As `log_me` does, or when rows are no probabilities.

    References
    ----------
    C. V. Nguyen, T. Hassner, M. Seeger and C. Archambeau, LEEP: A New Measure to Evaluate
    Transferability of Learned Representations, ICML 2020.

    Examples
    --------
    >>> from featx._selection.transferability import leep
    >>> round(leep([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]], ["cat", "cat", "dog"]), 3)
    -0.245
    """
    probabilities, codes = check_embeddings(source_probabilities, labels, "probabilities")
    sums = probabilities.sum(axis=1)
    if probabilities.min() < 0 or np.abs(sums - 1).max() > _LARGEST_GAP_OF_A_SUM:
        row = int(np.argmax(np.maximum(np.abs(sums - 1), -probabilities.min(axis=1))))
        raise InputError(
            f"Got row {row} of the probabilities with the sum {sums[row]:.6g} and the minimum "
            f"{probabilities[row].min():.6g} but expected numbers of at least 0 with the sum 1; "
            "of logits take the softmax first"
        )
    probabilities = probabilities / sums[:, np.newaxis]
    joint = one_hot(codes).T @ probabilities
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(float).tiny)
    expected = np.einsum("iz,iz->i", conditional[codes], probabilities)
    return float(np.log(expected).mean())


def nce(source_labels: Any, labels: Any) -> float:
    r"""Return NCE, the negative conditional entropy of the labels given those of a source.

    .. math:: -H(Y \mid Z) = \sum_{y, z} P(y, z) \log P(y \mid z)

    Parameters
    ----------
    source_labels : array-like of shape (n_images,)
        The class that the source classifier predicts, or another labelling of the same images.
    labels : array-like of shape (n_images,)
        The class of each image in the task at hand.

    Returns
    -------
    float
        At most 0; greater is better.

    Raises
    ------
    InputError
        When either is not one label per image, is missing somewhere, or there is one class only.

    References
    ----------
    A. T. Tran, C. V. Nguyen and T. Hassner, Transferability and Hardness of Supervised
    Classification Tasks, ICCV 2019.

    Examples
    --------
    >>> from featx._selection.transferability import nce
    >>> nce(["tabby", "husky", "tabby"], ["cat", "dog", "cat"])
    0.0
    >>> round(nce(["tabby", "tabby", "tabby", "tabby"], ["cat", "dog", "cat", "dog"]), 4)
    -0.6931
    """
    codes = encode_labels(labels)
    source = encode_labels(source_labels, "source labels", may_be_one=True)
    check_lengths(len(source), len(codes))
    joint = np.zeros((codes.max() + 1, source.max() + 1))
    np.add.at(joint, (codes, source), 1)
    y, z = joint.nonzero()
    counts = joint[y, z]
    # Adding 0 turns the -0.0 of a perfect prediction into 0.0.
    return float(counts @ np.log(counts / joint.sum(axis=0)[z]) / len(codes)) + 0.0


def nearest_neighbour_score(embeddings: Any, labels: Any, *, n_neighbors: int = 5) -> float:
    """Return the share of images whose class their nearest neighbours among the others tell.

    Each image is classified by the majority of its neighbours, itself left out; ties go to the
    classes of the nearer ones. The embeddings are standardised and scaled to unit length, as for
    the heads of a search.

    Parameters
    ----------
    embeddings : array-like of shape (n_images, dimension)
        Finite numbers.
    labels : array-like of shape (n_images,)
        The class of each image.
    n_neighbors : int, default=5
        How many vote; at most all others do.

    Returns
    -------
    float
        Accuracy between 0 and 1; greater is better.

    Raises
    ------
    InputError
        As `log_me` does, or when ``n_neighbors`` is not positive.

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
    if n_neighbors < 1:
        raise InputError(f"Got n_neighbors={n_neighbors!r} but expected at least 1")
    count = min(int(n_neighbors), len(features) - 1)
    unit = _scaler().fit_transform(features)
    # Asked without images of its own, it leaves each image out of its neighbours.
    neighbours = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(unit)
    classes = codes[neighbours.kneighbors(return_distance=False)]
    # A vote each, and for ties a little more to the nearer: all of it together is half a vote.
    votes = np.zeros((len(codes), codes.max() + 1))
    for place in range(count):
        weight = 1 + (count - place) / (count * (count + 1))
        votes[np.arange(len(codes)), classes[:, place]] += weight
    return float((votes.argmax(axis=1) == codes).mean())


def linear_probe_score(
    embeddings: Any, labels: Any, *, cv: int = PROBE_FOLDS, random_state: int | None = 0
) -> float:
    """Return the cross-validated accuracy of a logistic regression, with nothing tuned.

    It is the head ``"logistic_regression"`` of a search with one strength of its penalty, C = 30,
    and its scaling, learnt in each fold: the dearest of the scores, and what they all approximate.

    Parameters
    ----------
    embeddings : array-like of shape (n_images, dimension)
        Finite numbers.
    labels : array-like of shape (n_images,)
        The class of each image.
    cv : int, default=3
        Number of stratified, shuffled folds.
    random_state : int or None, default=0
        Seed of the folds.

    Returns
    -------
    float
        Accuracy between 0 and 1; greater is better.

    Raises
    ------
    InputError
        As `log_me` does, or when a class has fewer images than there are folds.

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
    check_folds(labels, cv)
    (head,) = choose_heads("logistic_regression", random_state)
    classifier: ClassifierMixin = clone(head.classifier).set_params(C=_PROBE_C)
    probe = Pipeline([("scaler", head.scaler), ("head", classifier)])
    folds = StratifiedKFold(cv, shuffle=True, random_state=random_state)
    # The matrices are small: several threads for each product cost more than they save.
    with threadpool_limits(1, user_api="blas"):
        return float(cross_val_score(probe, features, codes, cv=folds).mean())


def _shrinkage(centred: np.ndarray, variances: np.ndarray) -> float:
    """Return how far the covariance is drawn to a multiple of the identity.

    It is the estimate of O. Ledoit and M. Wolf, A well-conditioned estimator for large-dimensional
    covariance matrices, Journal of Multivariate Analysis 88, 2004, from the variances along the
    principal directions; scikit-learn's squares the whole matrix for it, which takes most of a
    minute for 10,000 rows of 2,048.
    """
    rows, dimension = centred.shape
    of_covariance = np.square(variances).sum()
    distance = of_covariance - variances.sum() ** 2 / dimension
    fourth = np.square(np.square(centred).sum(axis=1)).sum()
    error = (fourth / rows - of_covariance) / rows
    return float(min(error, distance) / distance) if distance > 0 else 0.0


def _scaler() -> Any:
    (head,) = choose_heads("k_nearest_neighbors")
    return clone(head.scaler)
