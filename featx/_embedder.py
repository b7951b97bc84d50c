"""`ImageEmbedder`: images become embeddings, as a scikit-learn transformer."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from featx._checks import check_choice, check_whole_number
from featx._errors import (
    ImageDecodeWarning,
    InputError,
    PrecisionWarning,
    StaleEmbedderError,
)
from featx._extraction.contents import chosen_images
from featx._extraction.parcels import refuse_all_failed
from featx._extraction.recipe import EmbeddingRecipe, choose_backbone, choose_further_taps
from featx._extraction.runtime import computing_threads, plan_execution
from featx._extraction.stream import EmbeddingStream
from featx._images.limits import Limits
from featx._progress import check_progress, no_progress, progress_bar
from featx._public import public
from featx._store.cache import open_cache

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from typing import Self

    from sklearn.utils import Tags

    from featx._backbones.frozen import FrozenBackbone
    from featx._extraction.parcels import Parcel
    from featx._extraction.stream import Skip
    from featx._progress import Advance
    from featx._store.cache import EmbeddingCache


@public
class ImageEmbedder(TransformerMixin, BaseEstimator):
    """Turn images into the embeddings of a frozen, pretrained CNN.

    A transformer like any other: it stands first in a `Pipeline`, in a `ColumnTransformer` or in a
    `GridSearchCV`. Each distinct image is computed once and kept in a cache, whatever the number
    of folds, candidates, clones and workers. Row i of the output is image i.

    Parameters
    ----------
    backbone : str or FrozenBackbone, default="efficientnet_lite0"
        The network: a name of `featx.list_backbones`, such as ``"torchvision/resnet50"`` or
        ``"timm/convnext_tiny.fb_in1k"``, or a network of your own as a `featx.FrozenBackbone`.
    weights : str or None, default="default"
        The pretrained weights: ``"default"``, a tag, a ``.safetensors`` or ``.pth`` file, or None
        for random ones, which are the same at every fit.
    layers : str or sequence of str, default="penultimate"
        What is taken from the network: the features before its classifier, a module by its dotted
        name (see ``load_backbone(...).list_layers()``), several of them, concatenated from one
        forward, or ``"multilevel"``.
    pooling : str or sequence of str, default="avg"
        How a feature map becomes a vector, for all layers or one for each: ``"avg"``, ``"max"``,
        ``"gem"``, ``"grid2"`` or ``"grid3"`` (averages over the cells of a grid), ``"flatten"``,
        or ``"cls"`` where the network has a class token.
    views : str, default="center"
        The views of an image whose vectors are averaged: ``"center"``, ``"flip"`` (with the mirror
        image), ``"five_crops"``, ``"ten_crops"`` or ``"multiscale"``.
    image_size : int, optional
        Side of the network's input in pixels; by default the one that it was trained with.
    pixel_range : {"type", "image"} or pair of numbers, default="type"
        Black and white of numbers that are not uint8: what their type has room for (floats: 0 to
        1), what each image has, or two numbers, as ``(0, 4095)`` for 12 bits in a file of 16.
    precision : {"float32", "bfloat16"}, default="float32"
        The arithmetic of the network. In bfloat16 large networks are about twice as fast on
        processors that have it; where it moves the vectors of a network (cosine below 0.999 on
        pictures that are drawn for that), a `PrecisionWarning` says so.
    device : str, default="auto"
        ``"auto"`` takes the first GPU where there is one and the CPU elsewhere; otherwise a torch
        device, such as ``"cpu"`` or ``"cuda:1"``.
    batch_size : int or "auto", default="auto"
        Images per forward. A batch is always full, the last one by padding, so that a vector does
        not depend on the images beside it. ``"auto"`` takes single images on a CPU under ONNX
        Runtime, where each thread computes its own, and on a GPU what its memory allows; a batch
        that does not fit all the same is halved for the rest of the process.
    runtime : {"auto", "onnx", "torch", "compile"}, default="auto"
        What executes the network: ``"auto"`` is ONNX Runtime on a CPU in float32, and torch on a
        GPU or in bfloat16. ``"compile"`` is ``torch.compile``, which needs a compiler, and some
        time at the start of each process. One that cannot be built is replaced by torch, with a
        `RuntimeFallbackWarning`.
    num_workers : int, optional
        Threads that read, decode and resize images ahead of the network; 0 does it in the calling
        thread. By default as many as torch uses for its arithmetic.
    on_error : {"raise", "nan"}, default="raise"
        An image that cannot be read raises `ImageDecodeError` with its path and row, or gives a
        row of NaN and one `ImageDecodeWarning`. When no image can be read, both raise.
    max_pixels : int, default=178_956_970
        An image of more pixels (width × height) is refused from its header, before it is decoded:
        a decompression bomb, or a mistake. It changes no vector, and an embedding that is in
        the cache is returned whatever the size of its image.
    max_file_bytes : int, default=2**31
        An encoded image of more bytes is refused before it is read.
    cache : "auto", path, EmbeddingCache or None, default="auto"
        Where embeddings are kept: the user's cache folder (or the one named by the environment
        variable ``FEATX_CACHE``, which may also be ``"off"``), another folder, a cache, or nowhere.
    also_cache : sequence, default=()
        Further layers, or pairs of layers and pooling, to keep in the cache whenever the network
        runs: a later embedder that takes them needs no forward. It changes no output.
    progress : {"auto"} or bool, default="auto"
        ``"auto"`` shows a progress bar on a terminal and in a notebook.

    Attributes
    ----------
    recipe_ : str
        32 hexadecimal digits that name what decides a vector up to rounding: weights, layers,
        pooling, views, preprocessing and precision, but neither device nor runtime.
    n_features_out_ : int
        Length of an embedding.
    execution_ : str
        What computes, and on what kind of device, such as ``"onnx on cpu"``.
    n_features_in_, feature_names_in_
        1 and the name of the column, when fitted on a data frame.
    failures_ : tuple of DecodeFailure
        Row, path and reason of each image that `fit_transform` could not read. Set by
        `fit_transform` only; after `transform` they are in the warning's ``failures``.

    Notes
    -----
    `transform` needs no `fit`: nothing is learnt. `fit` checks the parameters and records the
    recipe, and a fitted embedder whose recipe no longer matches (other weights, another layer)
    refuses to transform instead of mixing two kinds of vectors. Another device or runtime has the
    same recipe: a model that was fitted on a GPU predicts on a CPU.

    Each layer has a place of its own in the cache, so what one embedder stored serves every other
    that takes this layer. Whatever else is taken in the same forward, the vector is the same bit
    for bit under ONNX Runtime; but for a linear layer inside a transformer block, which may differ
    by 2e-7. Processes that take different layers of the same images at the same time may each run
    the network for an image; rows are stored once all the same.

    Images are paths (str or Path), bytes of an image file, PIL images, arrays of shape (height,
    width, 3) or (height, width), or torch tensors of shape (3, height, width), in a list, a Series,
    a data frame of one column, a one-dimensional array, a single four-dimensional array or tensor,
    or any object with a length and an index, as of torchvision, Hugging Face, HDF5 or Arrow, each
    of whose items is taken once. A string is always a path and never fetched.

    Examples
    --------
    >>> import numpy as np
    >>> from featx import ImageEmbedder
    >>> images = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)
    >>> embedder = ImageEmbedder()
    >>> embeddings = embedder.fit_transform(images)
    >>> embeddings.shape, embeddings.dtype
    ((3, 1280), dtype('float32'))
    >>> embedder.get_feature_names_out()[:2]
    array(['efficientnet_lite0_0000', 'efficientnet_lite0_0001'], dtype=object)
    """

    pixel_range: Any = "type"  # of what was saved before there was this parameter

    def __init__(
        self,
        backbone: str | FrozenBackbone = "efficientnet_lite0",
        *,
        weights: str | None = "default",
        layers: str | Sequence[str] = "penultimate",
        pooling: str | Sequence[str] = "avg",
        views: str = "center",
        image_size: int | None = None,
        pixel_range: Any = "type",
        precision: str = "float32",
        device: str = "auto",
        batch_size: int | str = "auto",
        runtime: str = "auto",
        num_workers: int | None = None,
        on_error: str = "raise",
        max_pixels: int = 178_956_970,
        max_file_bytes: int = 2**31,
        cache: str | os.PathLike[str] | EmbeddingCache | None = "auto",
        also_cache: Sequence[Any] = (),
        progress: bool | str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.pooling = pooling
        self.views = views
        self.image_size = image_size
        self.pixel_range = pixel_range
        self.precision = precision
        self.device = device
        self.batch_size = batch_size
        self.runtime = runtime
        self.num_workers = num_workers
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.max_file_bytes = max_file_bytes
        self.cache = cache
        self.also_cache = also_cache
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and the form of the input; no image is read.

        Parameters
        ----------
        X : sequence of images
            See the notes of the class.
        y : array-like of shape (n_images,), optional
            Only its length is looked at.

        Returns
        -------
        self

        Raises
        ------
        InputError
            When a parameter or the input is not of the expected kind.
        WeightsError
            When the network's weights are not on this machine.
        """
        items = chosen_images(X)
        if y is not None and len(y) != len(items):
            raise InputError(
                f"Got {len(items)} images and {len(y)} labels but expected one label per image"
            )
        recipe = self._prepare(open_cache(self.cache))
        self._note_column(X)
        self.recipe_ = recipe.name
        self.execution_ = recipe.plan.description
        self.n_features_out_ = recipe.dimension
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the embeddings of the images.

        Parameters
        ----------
        X : sequence of images
            See the notes of the class.

        Returns
        -------
        ndarray of float32, shape (n_images, n_features_out_)
            Row i is image i.

        Raises
        ------
        ImageDecodeError
            When an image cannot be read and ``on_error="raise"``, or when none can.
        InputError
            When a parameter or the input is not of the expected kind.
        StaleEmbedderError
            When the embedder was fitted under another recipe.
        """
        extraction = self.extract(X)
        _warn_of_failures(extraction)
        return extraction.vectors

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit and return the embeddings; also sets ``failures_``.

        Parameters
        ----------
        X : sequence of images
            See the notes of the class.
        y : array-like of shape (n_images,), optional
            Only its length is looked at.
        **fit_params : dict
            None are taken.

        Returns
        -------
        ndarray of float32, shape (n_images, n_features_out_)
            Row i is image i.
        """
        extraction = self.fit(X, y, **fit_params).extract(X)
        _warn_of_failures(extraction)
        self.failures_ = extraction.failures
        return extraction.vectors

    def extract(self, X: Any) -> Parcel:
        """Return the embeddings with the digest of each image and what could not be read.

        `transform` is this, with its failures as a warning.

        Parameters
        ----------
        X : sequence of images
            See the notes of the class.

        Returns
        -------
        Parcel
            Of all images: ``vectors``, ``digests`` and ``failures``.
        """
        items = chosen_images(X)
        stream = self._open_stream()
        with progress_bar("Embedding", len(items), self.progress) as advance:
            extraction = stream.extract(items, advance)
        refuse_all_failed(extraction.failures, len(items))
        return extraction

    def stream(
        self,
        X: Any,
        *,
        skip: Skip | None = None,
        advance: Advance = no_progress,
        use_cache: bool = True,
    ) -> Iterator[Parcel]:
        """Yield the embeddings of the images parcel by parcel, in order, in bounded memory.

        Parameters
        ----------
        X : sequence of images
            See the notes of the class.
        skip : callable, optional
            Is asked with the row of the first image of a parcel, its images and their digests, and
            returns for which of them nothing is to be computed (ndarray of bool), or None.
        advance : callable, optional
            Is told how many images are done, and how many of them needed no computing.
        use_cache : bool, default=True
            False computes every image anew and keeps nothing, by the same runtime: to measure it.

        Yields
        ------
        Parcel
            At most 256 images: ``start`` (the row of the first one), ``items``, ``vectors``
            (float32; NaN where unreadable or skipped), ``digests`` and ``failures``, which name
            rows among all images.

        Raises
        ------
        ImageDecodeError, InputError, StaleEmbedderError
            As `transform` does; with ``on_error="nan"`` all images may be unreadable.
        """
        items = chosen_images(X)
        yield from self._open_stream(use_cache=use_cache).parcels(items, advance, skip=skip)

    def _open_stream(self, *, use_cache: bool = True) -> EmbeddingStream:
        cache = open_cache(self.cache)
        recipe = self._prepare(cache)
        self._check_fresh(recipe)
        threads = computing_threads()
        return EmbeddingStream(
            recipe,
            cache,
            num_workers=threads if self.num_workers is None else int(self.num_workers),
            threads=threads,
            stop_at_failure=self.on_error == "raise",
            use_cache=use_cache,
        )

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return one name per column: the backbone, and where in it the number comes from.

        Parameters
        ----------
        input_features : ignored
            Here because scikit-learn passes it.

        Returns
        -------
        ndarray of str objects, shape (n_features_out_,)
        """
        recipe = self._prepare(open_cache(self.cache))
        self._check_fresh(recipe)
        return np.asarray(recipe.feature_names(), dtype=object)

    def get_provenance(self) -> dict[str, Any]:
        """Return what made the vectors, as plain JSON types, for the exports.

        Returns
        -------
        dict
            Backbone, weights and their sha256, layers, pooling, views, preprocessing, precision,
            runtime, device type, versions, and the names of it all: ``recipe`` without and
            ``fingerprint`` with runtime and device.
        """
        return self._prepare(open_cache(self.cache)).describe()

    def keeps_embeddings(self) -> bool:
        """Return whether what is computed is found again: there is a cache, and it can be used."""
        return (cache := open_cache(self.cache)) is not None and cache.is_writable()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "recipe_") or hasattr(self, "fingerprint_")

    def _prepare(self, cache: EmbeddingCache | None) -> EmbeddingRecipe:
        """Check the parameters and decide what runs and how."""
        check_choice("on_error", self.on_error, ("raise", "nan"))
        check_progress(self.progress)
        check_whole_number("num_workers", self.num_workers, also=[None])
        plan = plan_execution(self.runtime, self.device, self.batch_size, self.precision)
        backbone = choose_backbone(self.backbone, self.weights, self.image_size)
        plan = plan.for_images_of(backbone.preprocessing.image_size)
        taps = backbone.taps(self.layers, self.pooling)
        further_taps = choose_further_taps(backbone, self.also_cache, taps)
        limits = Limits(self.max_pixels, self.max_file_bytes, self.pixel_range)
        recipe = EmbeddingRecipe(backbone, taps, further_taps, self.views, plan, limits)
        return recipe.with_runtime(cache)

    def _note_column(self, X: Any) -> None:
        """Note what scikit-learn notes of a data frame; other inputs have no columns."""
        for of_an_earlier_fit in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(of_an_earlier_fit, None)
        columns = getattr(X, "columns", None)
        if columns is not None:
            self.n_features_in_ = len(columns)
            if all(isinstance(name, str) for name in columns):
                self.feature_names_in_ = np.asarray(columns, dtype=object)

    def _check_fresh(self, recipe: EmbeddingRecipe) -> None:
        before = getattr(self, "execution_", recipe.plan.description)
        fitted = getattr(self, "recipe_", None)
        if fitted is None and hasattr(self, "fingerprint_"):  # fitted by featx 0.1
            is_same = recipe.is_of_version_0_1(self.fingerprint_, before)
            fitted = recipe.name if is_same else self.fingerprint_
        if fitted not in (None, recipe.name):
            raise StaleEmbedderError(
                f"This ImageEmbedder was fitted with the recipe {fitted} ({before}) but here and "
                f"now its parameters and weights, of {self.backbone!r}, make the recipe "
                f"{recipe.name}, so its vectors would differ from those it was fitted with; "
                "restore its parameters and weights, or else call fit again"
            )
        if recipe.plan.precision != "float32" and before != recipe.plan.description:
            warnings.warn(
                f"This ImageEmbedder was fitted as {before} and runs as {recipe.plan.description}: "
                f"in {recipe.plan.precision} devices round differently",
                PrecisionWarning,
                stacklevel=4,
            )


def _warn_of_failures(extraction: Parcel) -> None:
    """Issue one `ImageDecodeWarning` where some could not be read, to the caller of `transform`."""
    if extraction.failures:
        warning = ImageDecodeWarning(extraction.failures, len(extraction.digests))
        warnings.warn(warning, stacklevel=4)  # above transform and scikit-learn's set_output
