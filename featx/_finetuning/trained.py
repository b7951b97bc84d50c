"""A trained network: it predicts, is frozen for another task, is written and read."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.utils.validation import check_is_fitted

from featx._backbones.embedding_network import has_features_and_head
from featx._backbones.frozen import FrozenBackbone
from featx._backbones.weights import load_tensors
from featx._checks import brief
from featx._errors import InputError, SchemaError
from featx._extraction.contents import checked_images
from featx._extraction.runtime import computing_threads, torch_threads
from featx._files import output_file, write_atomically
from featx._finetuning.base import TrainedClassifier
from featx._finetuning.network import FineTuningNetwork, assemble_network, open_backbone
from featx._finetuning.samples import ImageSamples, choose_seed
from featx._images.limits import Limits

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from typing import Self

    from sklearn.utils import Tags

    from featx._images.preprocess import Preprocessing


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
        with torch_threads(computing_threads()):
            probabilities = self._compute(network, samples, device).softmax(dim=1)
        return probabilities.numpy()

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
        network = self._describe_network(self._origin[0], self.preprocessing_)
        _write_weights_file(output_file(file), tensors, self.classes_, network)

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
        tensors, classes, written = _read_weights_file(Path(file))
        seed = choose_seed(self.random_state)
        backbone = self._open_backbone(seed)
        with torch_threads(computing_threads()):
            network = self._assemble(backbone, len(classes), seed)
        own = self._describe_network(backbone.name, backbone.preprocessing)
        if not written:
            warnings.warn(
                f"{file} was written by featx 0.1 and does not say which backbone, image size and "
                "preprocessing its weights go with; see that they are the same, and write it anew",
                UserWarning,
                stacklevel=2,
            )
        for name, value in written.items():
            if own.get(name) != value:
                raise SchemaError(
                    f"Got {file}, written by a classifier with {name} {brief(value)}, but this one "
                    f"has {brief(own.get(name))}; give it the same backbone, image_size, "
                    "preprocessing and hidden_layer_sizes"
                )
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

    def _describe_network(self, name: str, preprocessing: Preprocessing) -> dict[str, Any]:
        """Return what a classifier that loads the weights must share, as plain JSON types."""
        return {
            # The tag behind the dot names other weights of the same network.
            "backbone": name.partition(".")[0],
            "hidden_layer_sizes": [int(size) for size in self.hidden_layer_sizes],
            **preprocessing.describe(),
        }

    def _open_backbone(self, seed: int) -> FrozenBackbone:
        return open_backbone(self.backbone, self.weights, self.image_size, self.preprocessing, seed)

    def _assemble(self, backbone: FrozenBackbone, n_classes: int, seed: int) -> FineTuningNetwork:
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
        self, items: Sequence[Any], preprocessing: Preprocessing, memory: int
    ) -> ImageSamples:
        limits = Limits(self.max_pixels, self.max_file_bytes)
        threads = computing_threads() if self.num_workers is None else self.num_workers
        return ImageSamples(items, preprocessing, limits, threads, memory)

    def _compute(
        self,
        compute: Callable[[torch.Tensor], torch.Tensor],
        samples: ImageSamples,
        device: str,
    ) -> torch.Tensor:
        """Return what a network makes of all images, float32, on the CPU."""
        with torch.no_grad():
            return torch.cat(
                [
                    compute(pixels.to(device))[:count].float().cpu()
                    for count, pixels in samples.fixed_batches(self.batch_size)
                ]
            )


FILE_VERSION = 1

_KINDS = "OUbiuf"


def _write_weights_file(
    path: Path, tensors: dict[str, torch.Tensor], classes: np.ndarray, network: dict[str, Any]
) -> None:
    if path.suffix != ".safetensors":
        raise InputError(f"Got {path} but expected a name that ends in .safetensors")
    labels = classes.tolist()
    is_plain = all(isinstance(label, str | int | float | bool) for label in labels)
    if classes.dtype.kind not in _KINDS or not is_plain:
        raise InputError(
            f"Got labels of the type {type(labels[0]).__name__}, which a weights file cannot hold; "
            "expected strings, numbers or booleans"
        )
    described = {
        "version": FILE_VERSION,
        "classes": labels,
        "network": network,
        "dtype": "object" if classes.dtype == object else classes.dtype.str,
    }
    # Copies, as tensors that share their memory cannot be written.
    content = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as stream:
        stream.write(save(content, {"featx": json.dumps(described)}))


def _read_weights_file(
    path: Path,
) -> tuple[dict[str, torch.Tensor], np.ndarray, dict[str, Any]]:
    """Return tensors, classes, and the description of the network, which is empty of featx 0.1."""
    if not path.is_file():
        raise InputError(f"There is no weights file {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            described = json.loads((opened.metadata() or {})["featx"])
            if described["version"] != FILE_VERSION:
                raise KeyError("version")
            dtype = np.dtype(described["dtype"])
            classes = np.array(described["classes"], dtype=dtype)
            if dtype.kind not in _KINDS or classes.ndim != 1 or len(classes) < 2:
                raise ValueError("classes")
            tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
            return tensors, classes, dict(described.get("network", {}))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{path} was not written by save_weights of this version of featx, or is damaged; "
            "write it anew"
        ) from error
