"""A training to be killed: ``training_trial.py CHECKPOINT PAUSE SEED``, or in this process."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from networks import OWN, make_images, tensors_of

from featx._finetuning.classifier import FineTunedClassifier

if TYPE_CHECKING:
    import os

PARAMETERS: dict[str, Any] = {
    "epochs": 12,
    "dropout": 0.3,
    "hidden_layer_sizes": (6,),
    "early_stopping": True,
    "validation_fraction": 0.2,
    "patience": 12,
    "random_state": None,
}


class Slowly:
    """A transform that draws from torch and takes its time."""

    pause = 0.0  # of the class: how long it takes is nothing that the training depends on

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        return pixels if torch.rand(()) < 0.5 else pixels.flip(-1)


def run_trial(
    checkpoint: str | os.PathLike[str], pause: float, random_state: int | None
) -> dict[str, Any]:
    """Train in one thread and return all that came of it."""
    Slowly.pause = pause
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        classifier = FineTunedClassifier(
            **OWN | PARAMETERS | {"random_state": random_state},
            augment=Slowly(),
            checkpoint=checkpoint,
        )
        classifier.fit(*make_images(30))
        return {
            "history": classifier.history_,
            "kept": classifier.kept_epoch_,
            "accuracy": classifier.score(*make_images(30, seed=1)),
            "weights": {
                name: tensor.tobytes() for name, tensor in tensors_of(classifier.network_).items()
            },
        }
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    run_trial(sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3]))
    print("done")
