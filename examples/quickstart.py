"""From a folder of images to a cross-validated classifier, inside scikit-learn.

python examples/quickstart.py
"""

from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import ImageEmbedder, load_image_folder

SAMPLE = Path(__file__).parent.parent / "data" / "cifar10-sample"


def main() -> None:
    train = load_image_folder(SAMPLE / "train")
    test = load_image_folder(SAMPLE / "test")
    print(f"{len(train.paths)} training images of {len(train.target_names)} classes")

    # The embedder is a step like any other. Its cache makes this search cost one forward per
    # image, not one per image, fold and candidate.
    pipeline = make_pipeline(ImageEmbedder(), StandardScaler(), LogisticRegression())
    grid = {"logisticregression__C": [1e-4, 1e-3, 1e-2]}
    search = GridSearchCV(pipeline, grid, cv=5).fit(train.paths, train.target)

    print(f"best C: {search.best_params_['logisticregression__C']:g}")
    print(f"cross-validated accuracy: {search.best_score_:.3f}")
    print(f"held-out accuracy: {search.score(test.paths, test.target):.3f}")


if __name__ == "__main__":
    main()
