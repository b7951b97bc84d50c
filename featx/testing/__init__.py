"""Checks that an image transformer keeps scikit-learn's contract.

scikit-learn's ``check_estimator`` runs nothing but ``clone`` on an estimator whose tags say that
its input is not a 2-D array of numbers, so that passing it proves nothing for a transformer of
images. These are its checks of transformers with images as input, and some that only images need.
"""

from __future__ import annotations

from featx.testing._suite import CheckResult, check_image_transformer, image_transformer_checks

__all__ = ["CheckResult", "check_image_transformer", "image_transformer_checks"]
