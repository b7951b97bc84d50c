"""Models on disk: skops files, which hold no code and are read against a list of types."""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx._errors import InputError, SchemaError, UntrustedModelError
from featx._files import output_file, write_atomically
from featx._public import public

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

# The types beyond those that skops trusts by itself which a model of featx may hold: featx's own,
# and what scikit-learn's modules of classifiers, scores and searches define. A file with any other
# type is refused before anything of it is built.
TRUSTED_TYPES = (
    "featx.ImageEmbedder",
    "featx.LinearHeadClassifier",
    "featx.EmbeddingCache",
    "featx.HeadSearch",
    "pathlib.PosixPath",  # a cache folder given as a Path
)
_TRUSTED_MODULES = (
    *("sklearn.calibration", "sklearn.ensemble.", "sklearn.metrics.", "sklearn.model_selection."),
    *("sklearn.neighbors.", "sklearn.tree.", "sklearn.utils._bunch", "sklearn._loss."),
)

# Where featx 0.1 had what is named by its public name now.
_NAMES_OF_0_1 = {
    ("featx.embedder", "ImageEmbedder"),
    ("featx.finetuning.linear_head", "LinearHeadClassifier"),
    ("featx.store.cache", "EmbeddingCache"),
}


@public
def save_model(model: Any, file: str | os.PathLike[str]) -> None:
    """Write a fitted model to a file that holds no code.

    Networks are not written: an `ImageEmbedder` inside is its parameters, and finds its weights
    again where the model is loaded. A `FineTunedClassifier` is written by its own `save_weights`;
    for a network of the catalogue an embedder reads that file as its ``weights``.

    Parameters
    ----------
    model : estimator
        A fitted pipeline, for example the ``best_estimator_`` of a search.
    file : path
        Where to write, usually ``*.skops``; complete or absent, whatever happens.

    Raises
    ------
    InputError
        When the model holds a network or types that `load_model` would refuse, or the folder does
        not exist.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.linear_model import LogisticRegression
    >>> from featx import load_model, save_model
    >>> model = LogisticRegression(C=0.5).fit([[0.0], [1.0]], ["cat", "dog"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(model, Path(folder) / "model.skops")
    ...     load_model(Path(folder) / "model.skops").predict([[0.9]])
    array(['dog'], dtype='<U3')
    """
    import skops.io

    _refuse_networks(model)
    data = skops.io.dumps(model)
    refused = _refused_types(skops.io.get_untrusted_types(data=data))
    if refused:
        raise InputError(
            f"Got a model that holds {', '.join(refused)} but expected only types of "
            "scikit-learn and featx: load_model would refuse it; joblib.dump keeps any model"
        )
    with write_atomically(output_file(file)) as output:
        output.write(data)


@public
def load_model(file: str | os.PathLike[str]) -> Any:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    file : path
        The file.

    Returns
    -------
    estimator
        The fitted model.

    Raises
    ------
    InputError
        When there is no such file.
    UntrustedModelError
        When it holds types other than those of scikit-learn and featx; nothing of it was built.
    SchemaError
        When it is not a model file, or a damaged one.

    Examples
    --------
    >>> from featx import load_model
    >>> load_model("absent.skops")
    Traceback (most recent call last):
    featx.InputError: There is no model file absent.skops
    """
    import skops.io

    path = Path(file)
    if not path.is_file():
        raise InputError(f"There is no model file {path}")
    try:
        data = _with_names_of_today(path.read_bytes())
        untrusted = skops.io.get_untrusted_types(data=data)
        refused = _refused_types(untrusted)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise SchemaError(
            f"{path} is not a model written by featx, or is damaged: {error}"
        ) from error
    if refused:
        raise UntrustedModelError(
            f"{path} holds {', '.join(refused)}, which featx does not load: expected only types "
            "of scikit-learn and featx; nothing of it was loaded"
        )
    return skops.io.loads(data, trusted=untrusted)  # none of which is refused


def _with_names_of_today(data: bytes) -> bytes:
    """Return a model file in which classes of featx 0.1 have their public names."""

    def rename(state: Any) -> None:
        if isinstance(state, dict):
            if (state.get("__module__"), state.get("__class__")) in _NAMES_OF_0_1:
                state["__module__"] = "featx"
            state = list(state.values())
        for part in state if isinstance(state, list) else ():
            rename(part)

    with zipfile.ZipFile(io.BytesIO(data)) as old:
        schema = json.loads(old.read("schema.json"))
        before = json.dumps(schema)
        rename(schema)
        if json.dumps(schema) == before:
            return data
        renamed = io.BytesIO()
        with zipfile.ZipFile(renamed, "w") as new:
            for name in old.namelist():
                if name != "schema.json":
                    new.writestr(name, old.read(name))
            new.writestr("schema.json", json.dumps(schema))
    return renamed.getvalue()


def _refused_types(untrusted: Iterable[str]) -> list[str]:
    return sorted(name for name in {*untrusted} - {*TRUSTED_TYPES} if not _is_of_sklearn(name))


def _is_of_sklearn(name: str) -> bool:
    """Tell whether a trusted module defines it, and has not only imported it."""
    module, _, attribute = name.rpartition(".")
    if not module.startswith(_TRUSTED_MODULES) or ".tests" in module:
        return False
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return False
    return getattr(found, "__module__", None) == module


def _refuse_networks(model: Any) -> None:
    """Refuse a model that holds a network instead of the name of one, and say the way out."""
    parts = {"": model} | (model.get_params() if hasattr(model, "get_params") else {})
    for name, value in parts.items():
        # By the names of their classes: one of them needs a package that may not be here.
        kinds = {kind.__name__ for kind in type(value).__mro__}
        if "FineTunedClassifier" in kinds:
            advice = _advice_on_classifier(value)
        elif "FrozenBackbone" in kinds:
            advice = _advice_on_backbone(value)
        else:
            continue
        got = f"Got a model whose {name} is {_brief(value)}" if name else f"Got {_brief(value)}"
        raise InputError(f"{got}, a network, which no model file can hold; {advice}")


def _brief(value: Any) -> str:
    is_estimator = hasattr(value, "get_params")
    return f"a {type(value).__name__}" if is_estimator else repr(value)


def _advice_on_classifier(classifier: Any) -> str:
    keep = (
        f"write it with its save_weights({_WEIGHTS!r}) and read that with load_weights of a "
        f"{type(classifier).__name__} of the same parameters"
    )
    reference = getattr(classifier.backbone, "reference", None)
    if isinstance(classifier.backbone, str):
        embedder = _embedder(classifier.backbone, _WEIGHTS, classifier.image_size)
    elif reference is not None:
        embedder = _embedder(reference.name, _WEIGHTS, reference.image_size)
    else:
        return keep
    return f"{keep}; or fit and save a pipeline of {embedder} and a head, over the same file"


def _advice_on_backbone(backbone: Any) -> str:
    reference = backbone.reference
    if reference is not None:
        embedder = _embedder(reference.name, reference.weights, reference.image_size)
        return f"expected what it can be loaded by again: {embedder}"
    size = backbone.preprocessing.image_size
    return (
        f"if it is one of the catalogue, take ImageEmbedder(name, weights={_WEIGHTS!r}, "
        f"image_size={size}) over the file that save_weights of a FineTunedClassifier writes; else "
        "save the steps after the embedder alone, and set the network before them after loading"
    )


_WEIGHTS = "network.safetensors"


def _embedder(name: str, weights: str | None, image_size: int | None) -> str:
    size = "" if image_size is None else f", image_size={image_size}"
    return f"ImageEmbedder({name!r}, weights={weights!r}{size})"
