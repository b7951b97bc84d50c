"""A trained network: it predicts, is frozen for another task, is written and read."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from featx._backbones.embedding_network import has_features_and_head
from featx._backbones.fitting import load_tensors
from featx._backbones.frozen import FrozenBackbone
from featx._backbones.probe import probe_network
from featx._backbones.providers import load_backbone
from featx._errors import InputError
from featx._extraction.contents import checked_images
from featx._extraction.runtime import computing_threads, torch_threads
from featx._finetuning.base import TrainedClassifier
from featx._finetuning.checkpoints import (
    check_same_network,
    read_labelled_weights,
    write_labelled_weights,
)
from featx._finetuning.network import FineTuningNetwork, locate_classifier, replace_classifier
from featx._finetuning.samples import (
    INITIALIZATION,
    ImageSamples,
    choose_seed,
    derive_seed,
    torch_seeded,
)
from featx._finetuning.unfreezing import modules_to_train
from featx._images.limits import Limits
from featx._images.preprocess import Preprocessing

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

    from sklearn.utils import Tags


class TrainedNetwork(TrainedClassifier):
    """What `FineTunedClassifier` does with its network beside training it."""

    network_: FineTuningNetwork
    preprocessing_: Preprocessing
    _origin: tuple[str, str]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class for each image.

        Parameters
        ----------
        X : sequence of images
            As `fit` takes them.

        Returns
        -------
        ndarray of float32, shape (n_images, n_classes)
            The columns stand in the order of ``classes_``.

        Raises
        ------
        ImageDecodeError
            If an image cannot be read.
        """
        check_is_fitted(self, "network_")
        self._check_parameters()
        samples = self._samples(checked_images(X), self.preprocessing_, memory=0)
        device = self._choose_device()
        network = self.network_ if device == "cpu" else copy.deepcopy(self.network_).to(device)
        probabilities: list[np.ndarray] = []
        with torch.inference_mode(), torch_threads(computing_threads()):
            for count, pixels in samples.fixed_batches(self.batch_size):
                logits = network(pixels.to(device))[:count]
                probabilities.append(logits.softmax(dim=1).cpu().numpy())
        return np.concatenate(probabilities)

    def freeze(self) -> FrozenBackbone:
        """Return the trained network as a frozen backbone, with its recipe for images.

        As the ``backbone`` of `ImageEmbedder` it gives the vectors that its head takes
        (``"penultimate"``), or those of any layer; as that of another `FineTunedClassifier` it is
        where a training for another task begins.

        Returns
        -------
        FrozenBackbone
            It holds a copy: neither can change the other.
        """
        check_is_fitted(self, "network_")
        name, weights = self._origin
        module = self.network_.module
        return FrozenBackbone(
            module,
            self.preprocessing_,
            name=f"{name}_finetuned",
            # Networks that have a method for it are asked themselves, which runs no classifier.
            penultimate=None if has_features_and_head(module) else self.network_.classifier,
            weights=f"{weights}, fine-tuned",
        )

    def save_weights(self, file: str | os.PathLike[str]) -> None:
        """Write the trained network's weights and its classes, as safetensors, which hold no code.

        `load_weights` reads them. For a network of the catalogue so does
        ``load_backbone(name, weights=file)``: models over that can be saved by `save_model`.

        Parameters
        ----------
        file : path
            To be made or replaced; ends in ``.safetensors``.

        Raises
        ------
        InputError
            If it cannot be a file or ends otherwise, or the labels are neither strings nor numbers.
        """
        check_is_fitted(self, "network_")
        tensors = self.network_.module.state_dict()
        write_labelled_weights(file, tensors, self.classes_, self._describe_network())

    def load_weights(self, file: str | os.PathLike[str]) -> Self:
        """Become the classifier that `save_weights` wrote, instead of being fitted.

        Parameters
        ----------
        file : path
            Written by a classifier of the same parameters, as far as they shape the network.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If a parameter is not of the expected kind, or there is no such file.
        WeightsError
            If the weights do not fit the network.
        SchemaError
            If the file was not written by `save_weights`, is damaged, or was written by a
            classifier of another backbone, preprocessing (the image size is of it) or head.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from featx._finetuning.classifier import FineTunedClassifier
        >>> classifier = FineTunedClassifier("timm/test_efficientnet", weights=None, epochs=1)
        >>> images = np.zeros((4, 32, 32, 3), np.uint8)
        >>> _ = classifier.fit(images, ["cat", "dog"] * 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     classifier.save_weights(f"{folder}/pets.safetensors")
        ...     same = FineTunedClassifier("timm/test_efficientnet", weights=None)
        ...     same = same.load_weights(f"{folder}/pets.safetensors")
        >>> bool((same.predict(images) == classifier.predict(images)).all())
        True
        """
        self._check_parameters()
        tensors, classes, written = read_labelled_weights(file)
        seed = choose_seed(self.random_state)
        backbone = self._open_backbone(seed)
        network = self._assemble(backbone, len(classes), seed)
        self.preprocessing_, self._origin = backbone.preprocessing, (backbone.name, "")
        check_same_network(file, written, self._describe_network())
        load_tensors(network.module, tensors, (), f"{file} in {backbone.name}")
        self._keep_network(network, backbone)
        self.classes_ = classes
        return self

    def __sklearn_clone__(self) -> Self:
        try:
            clone: Self = super().__sklearn_clone__()
        except (TypeError, RuntimeError) as error:
            raise InputError(
                f"Got backbone={type(self.backbone).__name__}, which cannot be copied for another "
                f"process or fold: {error}; expected a module that copy.deepcopy copies, or a "
                "class or function that returns it"
            ) from error
        return clone

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def _describe_network(self) -> dict[str, Any]:
        """Return what a classifier that loads the weights must share, as plain JSON types."""
        return {
            # The tag behind the dot names other weights of the same network.
            "backbone": self._origin[0].partition(".")[0],
            "preprocessing": self.preprocessing_.describe(),
            "hidden_layer_sizes": [int(size) for size in self.hidden_layer_sizes],
        }

    def _open_backbone(self, seed: int) -> FrozenBackbone:
        return open_backbone(self.backbone, self.weights, self.image_size, self.preprocessing, seed)

    def _assemble(self, backbone: FrozenBackbone, n_classes: int, seed: int) -> FineTuningNetwork:
        with torch_threads(computing_threads()):
            return assemble_network(
                backbone,
                self.unfreeze,
                n_classes,
                self.hidden_layer_sizes,
                self.dropout,
                seed,
                self.batch_norm,
            )

    def _keep_network(self, network: FineTuningNetwork, backbone: FrozenBackbone) -> None:
        self.network_ = network
        self.preprocessing_ = backbone.preprocessing
        self._origin = (backbone.name, backbone.weights)

    def _samples(
        self, items: Sequence[Any], preprocessing: Preprocessing, memory: int | None = None
    ) -> ImageSamples:
        kept = self.pixel_memory if memory is None else memory
        return ImageSamples(items, preprocessing, self._limits(), self._n_threads(), kept)

    def _limits(self) -> Limits:
        return Limits(self.max_pixels, self.max_file_bytes)

    def _n_threads(self) -> int:
        return computing_threads() if self.num_workers is None else self.num_workers


# Statistics of ImageNet, as for any bare module; the image as it is, without a margin to crop.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_backbone(
    backbone: Any,
    weights: Any,
    image_size: int | None,
    preprocessing: Preprocessing | None,
    seed: int,
) -> FrozenBackbone:
    """Return the network that training begins with, and its recipe for images.

    Of a class or function, which is called without arguments, random weights are drawn with the
    seed.

    Raises
    ------
    InputError
        If the arguments do not go together, or there is no such network.
    """
    if isinstance(backbone, str):
        if preprocessing is not None:
            raise InputError(
                f"Got preprocessing beside backbone={backbone!r}, which has its own; leave it out"
            )
        return load_backbone(backbone, weights=weights, image_size=image_size)
    if weights != "default":
        raise InputError(
            f"Got weights={weights!r} beside a network that is not a name; expected its weights "
            "to be in it: leave weights out"
        )
    if isinstance(backbone, FrozenBackbone):
        if image_size is not None or preprocessing is not None:
            raise InputError(
                f"Got image_size or preprocessing beside {backbone!r}, which has its own; leave "
                "them out"
            )
        return backbone
    module = backbone if isinstance(backbone, nn.Module) else _build(backbone, seed)
    return FrozenBackbone(module, _recipe(image_size, preprocessing))


def is_drawn(backbone: Any) -> bool:
    """Whether a choice of backbone is a class or function, whose weights are drawn at each fit."""
    return callable(backbone) and not isinstance(backbone, nn.Module)


def _build(backbone: Any, seed: int) -> nn.Module:
    expected = (
        "expected the name of a network, a FrozenBackbone, a torch.nn.Module, or a class or "
        "function that returns one when it is called without arguments"
    )
    if not callable(backbone):
        raise InputError(f"Got backbone={backbone!r} but {expected}")
    with torch_seeded(derive_seed(seed, INITIALIZATION, 1)):
        try:
            module = backbone()
        except TypeError as error:
            raise InputError(f"Got backbone={backbone!r} ({error}) but {expected}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"Got a {type(module).__name__} from {backbone!r} but {expected}")
    return module


def _recipe(image_size: int | None, preprocessing: Preprocessing | None) -> Preprocessing | None:
    if image_size is None:
        return preprocessing
    if preprocessing is not None:
        raise InputError(
            f"Got image_size={image_size} beside a preprocessing, which has its own; leave one out"
        )
    return Preprocessing(image_size, image_size, "bilinear", _MEAN, _STD)


def assemble_network(
    backbone: FrozenBackbone,
    unfreeze: Any,
    n_classes: int,
    hidden_layer_sizes: Sequence[int],
    dropout: float,
    seed: int,
    batch_norm: str = "auto",
) -> FineTuningNetwork:
    """Return a copy of a backbone with a new classifier, some of its modules to be trained.

    Raises
    ------
    InputError
        If there are no such layers, or the classifier cannot be told or replaced.
    """
    size = backbone.preprocessing.image_size
    classifier = locate_classifier(backbone)
    module = copy.deepcopy(backbone.module)
    probe = probe_network(module, size, classifier, backbone.name)
    taken = probe.penultimate
    with torch_seeded(derive_seed(seed, INITIALIZATION)):
        replace_classifier(
            module,
            classifier,
            n_classes,
            hidden_layer_sizes,
            dropout,
            n_features=taken[1] if taken is not None and len(taken) == 2 else None,
        )
    trained = modules_to_train(module, unfreeze, classifier, probe.outputs, backbone.name)
    network = FineTuningNetwork(module, backbone.preprocessing, classifier, trained, batch_norm)
    network.check_logits(size, n_classes, backbone.name)
    return network


def embed_samples(
    network: FineTuningNetwork, samples: ImageSamples, device: str, batch_size: int
) -> torch.Tensor:
    """Return what the classifier takes of each image, float32 (n, n_features), on the CPU."""
    network.eval().to(device)
    vectors: list[torch.Tensor] = []
    with torch.no_grad():
        for count, pixels in samples.fixed_batches(batch_size):
            vectors.append(network.features(pixels.to(device))[:count].float().cpu())
    network.to("cpu")
    return torch.cat(vectors)
