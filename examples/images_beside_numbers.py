"""A column of image paths beside numeric columns, in one model.

    python examples/images_beside_numbers.py

The numbers are simple statistics of the pixels, as a table of products would have its price and
weight; what matters is how the columns are put together.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import ImageEmbedder, load_image_folder

SAMPLE = Path(__file__).parent.parent / "data" / "cifar10-sample"


def main() -> None:
    photos = load_image_folder(SAMPLE / "test")
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in photos.paths]
    table = pd.DataFrame(
        {
            "photo": photos.paths,
            "brightness": [image.mean() for image in pixels],
            "contrast": [image.std() for image in pixels],
            "blue": [image[..., 2].mean() - image[..., 0].mean() for image in pixels],
        }
    )

    numbers = ["brightness", "contrast", "blue"]
    both = ColumnTransformer(
        [
            ("photo", make_pipeline(ImageEmbedder(), StandardScaler()), "photo"),
            ("numbers", StandardScaler(), numbers),
        ]
    )
    numbers_only = ColumnTransformer([("numbers", StandardScaler(), numbers)])

    for name, features in (("numbers only", numbers_only), ("photo and numbers", both)):
        model = make_pipeline(features, LogisticRegression(C=1e-3 if features is both else 1.0))
        scores = cross_val_score(model, table, photos.target, cv=5)
        print(f"{name}: accuracy {scores.mean():.3f} ± {scores.std():.3f} over 5 folds")


if __name__ == "__main__":
    main()
