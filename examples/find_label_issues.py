"""Images whose labels are probably wrong, found by cleanlab in an export of featx.

pip install "cleanlab[datalab]"
python examples/find_label_issues.py
"""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
from cleanlab import Datalab
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import export_embeddings, load_image_folder, read_embeddings

SAMPLE = Path(__file__).parent.parent / "data" / "cifar10-sample"
CLASSES = ("airplane", "frog", "ship", "truck")
WRONG = 6


def mislabel(labels: np.ndarray) -> np.ndarray:
    """Return the rows of a few images after giving them the label of another class."""
    rows = np.random.default_rng(0).choice(len(labels), WRONG, replace=False)
    for row in rows:
        labels[row] = CLASSES[(CLASSES.index(labels[row]) + 1) % len(CLASSES)]
    return np.sort(rows)


def find_label_issues(file: Path) -> np.ndarray:
    """Return the rows of an export whose labels are probably wrong, the surest first."""
    X, labels = read_embeddings(file, return_X_y=True)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    probabilities = cross_val_predict(head, X, labels, cv=5, method="predict_proba")
    lab = Datalab({"label": labels.tolist()}, label_name="label", verbosity=0)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        lab.find_issues(features=X, pred_probs=probabilities)
    issues = lab.get_issues("label")
    return issues[issues["is_label_issue"]].sort_values("label_score").index.to_numpy()


def main() -> None:
    photos = load_image_folder(SAMPLE / "train")
    chosen = np.isin(photos.target, CLASSES)
    paths, labels = photos.paths[chosen], photos.target[chosen].astype(object)
    wrong = mislabel(labels)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.parquet"
        export_embeddings(paths, file, labels=labels)
        found = find_label_issues(file)
    print(f"{len(labels)} images, {len(wrong)} of them with a wrong label")
    print(f"{len(found)} found, {np.isin(wrong, found).sum()} of the wrong ones among them:")
    for row in found:
        verdict = "wrong" if row in wrong else "right"
        print(f"  {Path(paths[row]).name:<12} labelled {labels[row]:<9} ({verdict})")


if __name__ == "__main__":
    main()
