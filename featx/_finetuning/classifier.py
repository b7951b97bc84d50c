"""`FineTunedClassifier`: a pretrained network trained further on one's own images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featx._backbones.taps import PENULTIMATE, Tap
from featx._checks import check_choice, check_number, check_whole_number
from featx._extraction.contents import checked_images
from featx._extraction.runtime import computing_threads, torch_threads
from featx._finetuning.checkpoints import Checkpoint, identify
from featx._finetuning.network import BATCH_NORMS, is_drawn
from featx._finetuning.samples import choose_seed, find_augmentation
from featx._finetuning.trained import TrainedNetwork
from featx._finetuning.training import PRECISIONS
from featx._labels import sort_classes
from featx._public import public

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

    import numpy as np
    from torch import nn

    from featx._backbones.frozen import FrozenBackbone
    from featx._finetuning.network import FineTuningNetwork
    from featx._finetuning.samples import ImageSamples
    from featx._images.preprocess import Preprocessing

PIXEL_MEMORY = 10**9
"""Bytes of decoded images that are kept between epochs, unless another number is given."""


@public
class FineTunedClassifier(TrainedNetwork):
    """A network trained further on one's own images, as a scikit-learn classifier.

    Its last layer is replaced by a new one for the classes at hand. This is trained together with
    as much of the network as `unfreeze` says; the rest is frozen, BatchNorm statistics included.

    Parameters
    ----------
    backbone : str, FrozenBackbone, torch.nn.Module or callable, default="efficientnet_lite0"
        The network to begin with: a name of `featx.list_backbones`, a backbone, a module, which is
        copied and not changed, or a class or function that returns a module when it is called
        without arguments; its random weights are drawn with `random_state`.
    weights : str or None, default="default"
        As of `ImageEmbedder`, for a name: None trains from scratch.
    image_size : int, optional
        Side of the network's input in pixels, for a name or a module.
    preprocessing : Preprocessing, optional
        The recipe for images of a module. By default, with `image_size`, the shorter side is
        resized to it and the statistics are those of ImageNet.
    unfreeze : "head", "all", int, str or sequence of str, default="head"
        What is trained beside the new head: nothing, everything, the last so many stages (a
        negative number: all but the first so many), or modules by their dotted names with all that
        is in them. A stage is what the network lists as one, or else the layers at one resolution,
        or one block of a transformer.
    batch_norm : {"auto", "keep", "update"}, default="auto"
        Whether the statistics of BatchNorms in trained layers are kept or move with the batches;
        those in frozen layers are always kept. ``"auto"`` keeps statistics that were measured
        before: in a short training on few images they would move half way, to where they fit
        neither the old weights nor the new ones. Their scales and biases are trained either way.
    hidden_layer_sizes : sequence of int, default=()
        Units of hidden layers with ReLU before the output.
    dropout : float, default=0.0
        Share of the inputs of each layer of the head that are dropped in training.
    epochs : int, default=10
        Passes over the images, at most.
    head_epochs : int, default=0
        Passes in which the head alone is trained before, on vectors, so that a random head does
        not spoil pretrained layers (Kumar et al., "Fine-tuning can distort pretrained features and
        underperform out-of-distribution", ICLR 2022). Each image goes through the network once.
        It is left out where the classifier takes no vector, as in SqueezeNet.
    batch_size : int, default=32
        Images per step, at most.
    optimizer : {"adamw", "sgd"}, default="adamw"
        AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019), or
        gradient descent with a Nesterov momentum of 0.9.
    learning_rate : float, default=1e-3
        Of the head, at the beginning.
    backbone_learning_rate : float, optional
        Of the rest; by default a tenth of `learning_rate`, or `learning_rate` itself where training
        begins from scratch (``weights=None``, a class or a function).
    schedule : {"cosine", "linear", "constant"}, default="cosine"
        How the learning rates fall, step by step, to 0 at the end of the last epoch.
    weight_decay : float, default=1e-4
        Of the weights; biases and the scales of normalising layers are not decayed.
    label_smoothing : float, default=0.0
        Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.
    class_weight : None, "balanced" or dict, default=None
        Weight of each class in the loss, as scikit-learn takes it.
    augment : None, "light" or callable, default=None
        What changes each image anew in each epoch: ``"light"`` crops and mirrors; a callable is a
        transform of torchvision v2, from uint8 (3, side, side) to the same.
    early_stopping : bool, default=False
        Hold some images of each class out, end when their loss no longer falls, and keep the
        weights with which it was lowest.
    validation_fraction : float, default=0.1
        Share that is held out.
    patience : int, default=5
        Epochs without a lower loss after which it ends.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        What training computes in, by autocast; ``"float16"`` needs a GPU. Predictions are computed
        in float32.
    device : str, default="auto"
        As of `ImageEmbedder`.
    num_workers : int, optional
        Threads that decode; by default as many as torch uses for its arithmetic. The result is the
        same whatever their number.
    pixel_memory : int, default=10**9
        Bytes of decoded images that are kept between epochs; what does not fit is decoded again.
    max_pixels, max_file_bytes : int
        As of `ImageEmbedder`.
    checkpoint : path, optional
        A folder where the state is kept after each epoch. A training that was killed goes on from
        there when `fit` is called with the same parameters, images and labels, and one that was
        done is not repeated, with ``random_state=None`` either. Each training has a folder of its
        own in it, so that those of a search do not meet.
    random_state : int, RandomState or None, default=0
        The same number gives the same weights, on one machine with one number of torch threads.
    progress : {"auto"} or bool, default="auto"
        ``"auto"`` shows a progress bar on a terminal and in a notebook.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    network_ : featx._finetuning.network.FineTuningNetwork
        From uint8 pixels to logits, in eval mode on the CPU; ``network_.module`` is the trained
        module itself.
    preprocessing_ : Preprocessing
        How images are brought to the network's input.
    history_ : list of dict
        Of each epoch, from 1: ``train_loss`` and, under early stopping, ``valid_loss`` and
        ``valid_accuracy``.
    kept_epoch_ : int
        The epoch, from 1, whose weights are kept.
    n_epochs_ : int
        Epochs that were done.

    Notes
    -----
    When only the head is trained and nothing is augmented, each image goes through the network
    once per `fit`, and the head is trained on the vectors. A search over heads does better with
    `ImageEmbedder` and its cache, followed by `LinearHeadClassifier`.

    Images are what `ImageEmbedder` takes. One that cannot be read raises `ImageDecodeError`.

    Fits that run at the same time in threads of one process share torch's random numbers, and are
    repeatable only without dropout; in processes (``n_jobs`` of a search) they are.

    Examples
    --------
    >>> import numpy as np
    >>> from featx._finetuning.classifier import FineTunedClassifier
    >>> random = np.random.default_rng(0)
    >>> images = random.integers(0, 128, (8, 32, 32, 3), dtype=np.uint8)
    >>> images[4:] += 128
    >>> labels = ["dark"] * 4 + ["light"] * 4
    >>> classifier = FineTunedClassifier(
    ...     "timm/test_efficientnet", weights=None, image_size=32, unfreeze="all", epochs=5
    ... )
    >>> classifier.fit(images, labels).predict(images[:1])
    array(['dark'], dtype='<U5')

    What was trained on one task, as the frozen backbone of another:

    >>> from featx import ImageEmbedder
    >>> ImageEmbedder(classifier.freeze()).fit_transform(images).shape
    (8, 256)
    """

    def __init__(
        self,
        backbone: str | FrozenBackbone | nn.Module | Any = "efficientnet_lite0",
        *,
        weights: str | None = "default",
        image_size: int | None = None,
        preprocessing: Preprocessing | None = None,
        unfreeze: str | int | Sequence[str] = "head",
        batch_norm: str = "auto",
        hidden_layer_sizes: Sequence[int] = (),
        dropout: float = 0.0,
        epochs: int = 10,
        head_epochs: int = 0,
        batch_size: int = 32,
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        backbone_learning_rate: float | None = None,
        schedule: str = "cosine",
        weight_decay: float = 1e-4,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        augment: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        precision: str = "float32",
        device: str = "auto",
        num_workers: int | None = None,
        pixel_memory: int = PIXEL_MEMORY,
        max_pixels: int = 178_956_970,
        max_file_bytes: int = 2**31,
        checkpoint: str | os.PathLike[str] | None = None,
        random_state: Any = 0,
        progress: bool | str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.preprocessing = preprocessing
        self.unfreeze = unfreeze
        self.batch_norm = batch_norm
        self.hidden_layer_sizes = hidden_layer_sizes
        self.dropout = dropout
        self.epochs = epochs
        self.head_epochs = head_epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.backbone_learning_rate = backbone_learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.augment = augment
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.precision = precision
        self.device = device
        self.num_workers = num_workers
        self.pixel_memory = pixel_memory
        self.max_pixels = max_pixels
        self.max_file_bytes = max_file_bytes
        self.checkpoint = checkpoint
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any) -> Self:
        """Train the network.

        Parameters
        ----------
        X : sequence of images
            Paths, bytes, PIL images, arrays or tensors, as `ImageEmbedder` takes them.
        y : array-like of shape (n_images,)
            Labels of any type that can be sorted.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If a parameter, the images or the labels are not of the expected kind; if there is no
            such layer or device; if the loss is not finite before one epoch is done.
        ImageDecodeError
            If an image cannot be read; it names path and row.
        WeightsError
            If the network's weights are not on this machine.
        SchemaError
            If the checkpoint is damaged.

        Warns
        -----
        ConvergenceWarning
            If the loss stops being finite later: the weights of the best epoch are kept.
        """
        self._check_parameters()
        with torch_threads(computing_threads()):
            return self._fit(X, y)

    def _check_parameters(self) -> None:
        rate = self.backbone_learning_rate
        check_number("backbone_learning_rate", rate, 0, open_ends=True, or_none=True)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("batch_norm", self.batch_norm, BATCH_NORMS)
        check_whole_number("num_workers", self.num_workers, also=[None])
        check_whole_number("image_size", self.image_size, 1, also=[None])
        check_whole_number("pixel_memory", self.pixel_memory)
        check_whole_number("head_epochs", self.head_epochs)
        super()._check_parameters()

    def _fit(self, X: Any, y: Any) -> Self:
        items = checked_images(X)
        self.classes_, codes = sort_classes(y, len(items))
        seed = choose_seed(self.random_state)
        backbone = self._open_backbone(seed)
        samples = self._samples(items, backbone.preprocessing, self.pixel_memory)
        checkpoint = self._find_checkpoint(backbone, samples, codes)
        begun = None if checkpoint is None else checkpoint.load()
        if begun is not None and begun.seed != seed:
            seed, backbone = begun.seed, self._open_backbone(begun.seed)
        network = self._assemble(backbone, len(self.classes_), seed)
        self._train_network(network, samples, codes, seed, checkpoint)
        self._keep_network(network, backbone)
        return self

    def _find_checkpoint(
        self, backbone: FrozenBackbone, samples: ImageSamples, codes: np.ndarray
    ) -> Checkpoint | None:
        """Return the checkpoint of this training, named by everything that decides its result."""
        if self.checkpoint is None:
            return None
        network = backbone.describe(Tap(PENULTIMATE, "avg"))
        if is_drawn(self.backbone) and self.random_state is None:
            # Its weights are others at each fit: what draws them stands for them.
            network["weights_sha256"] = identify(self.backbone, "backbone")
        parameters = {
            name: identify(value, name)
            for name, value in self.get_params(deep=False).items()
            if name not in _WITHOUT_INFLUENCE
        }
        description = {
            "backbone": network,
            "parameters": parameters,
            "images": samples.digest(),
            "classes": repr(self.classes_.tolist()),
            "labels": hashlib.sha256(codes.tobytes()).hexdigest(),
        }
        return Checkpoint(self.checkpoint, description)

    def _train_network(
        self,
        network: FineTuningNetwork,
        samples: ImageSamples,
        codes: np.ndarray,
        seed: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        rate = self.backbone_learning_rate
        if rate is None:
            is_from_scratch = self.weights is None or is_drawn(self.backbone)
            rate = self.learning_rate if is_from_scratch else self.learning_rate / 10
        plan = self._plan(codes, seed, rate)
        side = samples.shape[-1]
        augmentation = find_augmentation(self.augment, side)
        on_vectors = network.ends_with_its_head(side)
        is_head_only = on_vectors and augmentation is None and network.trains_head_only
        if is_head_only or (on_vectors and self.head_epochs):
            # Each image goes through the network once.
            network.to(plan.device)
            vectors = self._compute(network.features, samples, plan.device)
            head_plan = plan if is_head_only else replace(plan, epochs=self.head_epochs)
            kept = checkpoint if is_head_only else None
            self._train_head(network.to("cpu").head, vectors, codes, head_plan, kept)
        if not is_head_only:
            self._train(network, network.is_of_head, samples, codes, plan, augmentation, checkpoint)


# They decide where and how fast, or are described by the backbone itself.
_WITHOUT_INFLUENCE = (
    *("backbone", "weights", "image_size", "preprocessing", "device", "num_workers"),
    *("pixel_memory", "max_pixels", "max_file_bytes", "checkpoint", "progress"),
)
