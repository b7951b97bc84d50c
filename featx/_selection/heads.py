"""Heads: the classifiers that are tried on embeddings, each with its scaling and its grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from featx._checks import refuse


@dataclass(frozen=True)
class Head:
    """A classifier on embeddings, with what is searched over.

    Attributes
    ----------
    name : str
        What ``heads=`` takes.
    scaler : transformer or "passthrough"
        What the embeddings go through first.
    classifier : classifier
        The unfitted classifier.
    grid : dict of str to list
        The values that are tried for the classifier's parameters.
    """

    name: str
    scaler: Any
    classifier: Any
    grid: dict[str, list[Any]]

    def with_probabilities(self) -> Head:
        """Return the head with a classifier that has probabilities (Platt, 1999)."""
        if hasattr(self.classifier, "predict_proba"):
            return self
        calibrated = CalibratedClassifierCV(self.classifier, cv=3, ensemble=False)
        grid = {f"estimator__{name}": values for name, values in self.grid.items()}
        return replace(self, classifier=calibrated, grid=grid)


def make_heads(random_state: int | None = 0) -> list[Head]:
    """Return the heads that featx offers, in the order in which they are reported."""
    # Standardised and then scaled to unit length: on photographs of clothing and on CIFAR-10 the
    # best scaling, or within 0.006 of it, for every head but the forest, which needs none. Unit
    # length also makes C and gamma mean the same for embeddings of any width.
    unit = make_pipeline(StandardScaler(), Normalizer())
    return [
        Head(
            "logistic_regression",
            unit,
            LogisticRegression(max_iter=1000),
            {"C": [0.3, 3.0, 30.0, 300.0]},
        ),
        Head(
            "linear_svm",
            unit,
            LinearSVC(random_state=random_state),
            {"C": [0.03, 0.3, 3.0, 30.0]},
        ),
        Head("rbf_svm", unit, SVC(), {"C": [1.0, 10.0, 100.0], "gamma": [0.03, 0.3, 1.0]}),
        Head(
            "random_forest",
            "passthrough",
            RandomForestClassifier(n_estimators=200, random_state=random_state),
            {"min_samples_leaf": [1, 3]},
        ),
        Head(
            "k_nearest_neighbors",
            unit,
            # Trees of neighbours do not help in hundreds of dimensions.
            KNeighborsClassifier(weights="distance", algorithm="brute"),
            {"n_neighbors": [3, 7, 15]},
        ),
    ]


def choose_heads(heads: Any = "all", random_state: int | None = 0) -> list[Head]:
    """Return the heads of one name, of several, or of all; the seed is that of those that draw.

    A classifier stands for a head of its own.

    Examples
    --------
    >>> from featx._selection.heads import choose_heads
    >>> [head.name for head in choose_heads(["rbf_svm", "linear_svm"])]
    ['rbf_svm', 'linear_svm']
    """
    known = {head.name: head for head in make_heads(random_state)}
    if isinstance(heads, str):
        chosen: list[Any] = list(known) if heads == "all" else [heads]
    else:
        chosen = [heads] if hasattr(heads, "fit") else list(dict.fromkeys(heads))
    expected = f"'all', classifiers, or some of {', '.join(known)}"
    if not chosen:
        raise refuse("heads", chosen, expected)
    for position, head in enumerate(chosen):
        if isinstance(head, str) and head in known:
            chosen[position] = known[head]
        elif hasattr(head, "fit") and is_classifier(head):
            chosen[position] = Head(head_name(head), known["logistic_regression"].scaler, head, {})
        else:
            raise refuse("heads", head, expected, known)
    return chosen


def head_name(classifier: Any) -> str:
    """Return the name of the head that a classifier belongs to."""
    if isinstance(classifier, CalibratedClassifierCV):
        return head_name(classifier.estimator)
    for head in make_heads():
        if type(classifier) is type(head.classifier):
            return head.name
    return type(classifier).__name__
