"""Models on disk: what comes back, and what never runs."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sklearn
import skops.io
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.fixes import parse_version
from small_networks import TINY
from torch import nn

from featx import (
    EmbeddingCache,
    FineTunedClassifier,
    FrozenBackbone,
    ImageEmbedder,
    LinearHeadClassifier,
    load_backbone,
    load_model,
    save_model,
)
from featx._errors import (
    FeatxError,
    InputError,
    SchemaError,
    StaleEmbedderError,
    UntrustedModelError,
)
from featx._persistence import _refused_types

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 60, 120, 180)]
LABELS = np.array(["dark", "dark", "light", "light"], dtype=object)


class Marker:
    """An object that a featx model has no business to hold."""


@pytest.mark.parametrize("cache", ["auto", None, Path, EmbeddingCache])
def test_a_fitted_pipeline_comes_back_with_its_predictions(tmp_path: Path, cache: Any) -> None:
    if isinstance(cache, type):
        cache = cache(tmp_path / "cache")
    model = make_pipeline(ImageEmbedder(**TINY, cache=cache), LogisticRegression())
    model.fit(IMAGES, LABELS)
    save_model(model, tmp_path / "model.skops")
    loaded = load_model(tmp_path / "model.skops")
    assert loaded[0].get_params() == model[0].get_params()
    assert loaded[0].recipe_ == model[0].recipe_
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), model.predict_proba(IMAGES))
    assert list(loaded.classes_) == ["dark", "light"]


def test_a_model_file_is_small_because_weights_stay_outside(tmp_path: Path) -> None:
    model = make_pipeline(ImageEmbedder(**TINY), LogisticRegression()).fit(IMAGES, LABELS)
    save_model(model, tmp_path / "model.skops")
    assert (tmp_path / "model.skops").stat().st_size < 100_000


HEADS = {"logistic": LogisticRegression(), "linear": LinearHeadClassifier(device="cpu")}


def test_the_way_out_that_is_said_of_a_trained_network_leads_to_the_same_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = train(image_size=48)
    with pytest.raises(InputError) as refused:
        save_model(trained, "model.skops")
    assert list(tmp_path.iterdir()) == []
    # What the message names is done, to the letter.
    (embedder,) = re.findall(r"ImageEmbedder\(.*?\)", str(refused.value))
    (file,) = re.findall(r"save_weights\('(.*?)'\)", str(refused.value))
    trained.save_weights(file)
    settings = {"device": "cpu", "batch_size": 4, "runtime": "torch"}
    of_trained = ImageEmbedder(trained.freeze(), **settings).transform(IMAGES)
    np.save("images.npy", np.stack(IMAGES))
    expected = {}
    for name, head in HEADS.items():
        model = make_pipeline(eval(embedder).set_params(**settings), head).fit(IMAGES, LABELS)
        np.testing.assert_array_equal(model[0].transform(IMAGES), of_trained)
        save_model(model, f"{name}.skops")
        expected[name] = model.predict_proba(IMAGES)
    code = (
        "import featx, numpy\n"
        f"for name in {[*HEADS]}:\n"
        "    model = featx.load_model(f'{name}.skops')\n"
        "    numpy.save(f'{name}.npy', model.predict_proba(numpy.load('images.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name, probabilities in expected.items():
        np.testing.assert_array_equal(np.load(f"{name}.npy"), probabilities)
    same = train(image_size=48, fitted=False).load_weights(file)
    np.testing.assert_array_equal(same.predict_proba(IMAGES), trained.predict_proba(IMAGES))


def train(*, fitted: bool = True, **parameters: Any) -> FineTunedClassifier:
    network = {"backbone": TINY["backbone"], "weights": None, "device": "cpu", "epochs": 1}
    classifier = FineTunedClassifier(**network | parameters)
    return classifier.fit(IMAGES, LABELS) if fitted else classifier


def pipeline_over(backbone: FrozenBackbone) -> Pipeline:
    return make_pipeline(ImageEmbedder(backbone, device="cpu"), LogisticRegression())


OWN_MODULE = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (
            lambda: make_pipeline(train(fitted=False)),
            [
                "Got a model whose finetunedclassifier is a FineTunedClassifier",
                "or fit and save a pipeline of ImageEmbedder('timm/test_efficientnet', weights=",
            ],
        ),
        (
            lambda: train(backbone=load_backbone(TINY["backbone"], weights=None, image_size=64),
                          weights="default", fitted=False),
            ["ImageEmbedder('timm/test_efficientnet', weights='network.safetensors', "
             "image_size=64)"],
        ),
        (
            lambda: train(backbone=OWN_MODULE, weights="default", fitted=False),
            ["save_weights('network.safetensors')", "FineTunedClassifier of the same parameters"],
        ),
        (
            lambda: pipeline_over(train().freeze()),
            [
                "imageembedder__backbone is FrozenBackbone('timm/test_efficientnet_finetuned'",
                "save_weights of a FineTunedClassifier writes",
            ],
        ),
        (
            lambda: pipeline_over(load_backbone("efficientnet_lite0", image_size=64)),
            ["ImageEmbedder('efficientnet_lite0', weights='default', image_size=64)"],
        ),
    ],
    ids=["step", "catalogue", "module", "frozen", "reference"],
)  # fmt: skip
def test_a_model_that_holds_a_network_is_refused_with_the_way_out(
    tmp_path: Path, make: Callable[[], Any], parts: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        save_model(make(), tmp_path / "model.skops")
    assert all(part in str(refused.value) for part in parts), refused.value
    assert "\n" not in str(refused.value)


def test_the_name_and_weights_that_a_backbone_was_loaded_by_take_its_place(tmp_path: Path) -> None:
    backbone = load_backbone("efficientnet_lite0", image_size=64)
    with pytest.raises(InputError) as refused:
        save_model(pipeline_over(backbone), tmp_path / "model.skops")
    (embedder,) = re.findall(r"ImageEmbedder\(.*?\)", str(refused.value))
    named = eval(embedder).set_params(runtime="torch").fit(IMAGES)
    given = ImageEmbedder(backbone, runtime="torch").fit(IMAGES)
    assert named.recipe_ == given.recipe_


def test_a_model_of_foreign_types_is_refused_before_it_is_written(tmp_path: Path) -> None:
    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    model.companion = Marker()
    with pytest.raises(InputError, match="Marker"):
        save_model(model, tmp_path / "model.skops")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_foreign_types_is_refused_by_name_and_nothing_is_built(tmp_path: Path) -> None:
    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    model.companion = Marker()
    (tmp_path / "model.skops").write_bytes(skops.io.dumps(model))
    with pytest.raises(UntrustedModelError, match="Marker"):
        load_model(tmp_path / "model.skops")


def test_a_type_name_that_was_changed_in_the_file_is_refused(tmp_path: Path) -> None:
    source = skops.io.dumps(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
    tampered = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(tampered, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "schema.json":
                schema = json.loads(content)
                schema["__module__"], schema["__class__"] = "os", "system"
                content = json.dumps(schema).encode()
            new.writestr(name, content)
    (tmp_path / "model.skops").write_bytes(tampered.getvalue())
    with pytest.raises(UntrustedModelError, match=r"os\.system"):
        load_model(tmp_path / "model.skops")


def rewritten(file: Path, change: Callable[[str], str]) -> None:
    """Change the text of a model file's schema."""
    changed = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "schema.json":
                content = change(content.decode()).encode()
            new.writestr(name, content)
    file.write_bytes(changed.getvalue())


def as_0_1_wrote_it(file: Path) -> None:
    """Give the classes of featx in a model file the addresses that they had in 0.1."""
    rooms = {
        "ImageEmbedder": "featx.embedder",
        "LinearHeadClassifier": "featx.finetuning.linear_head",
        "EmbeddingCache": "featx.store.cache",
    }

    def change(schema: str) -> str:
        state = json.loads(schema)

        def rename(part: Any) -> None:
            if isinstance(part, dict):
                if part.get("__module__") == "featx" and part.get("__class__") in rooms:
                    part["__module__"] = rooms[part["__class__"]]
                part = list(part.values())
            for inner in part if isinstance(part, list) else ():
                rename(inner)

        rename(state)
        return json.dumps(state)

    rewritten(file, change)


def test_a_model_of_version_0_1_is_read(tmp_path: Path) -> None:
    embedder = ImageEmbedder(**TINY, cache=EmbeddingCache(tmp_path / "cache"))
    model = make_pipeline(embedder, LogisticRegression()).fit(IMAGES, LABELS)
    expected = model.predict(IMAGES)
    # 0.1 had a fingerprint with the runtime and the device in it.
    model[0].fingerprint_ = model[0].get_provenance()["fingerprint"]
    del model[0].recipe_
    save_model(model, tmp_path / "model.skops")
    as_0_1_wrote_it(tmp_path / "model.skops")
    with zipfile.ZipFile(tmp_path / "model.skops") as file:
        assert "featx.embedder" in file.read("schema.json").decode()
    loaded = load_model(tmp_path / "model.skops")
    np.testing.assert_array_equal(loaded.predict(IMAGES), expected)
    loaded[0].set_params(runtime="torch")  # on another runtime too
    np.testing.assert_array_equal(loaded.predict(IMAGES), expected)
    with pytest.raises(StaleEmbedderError):
        loaded.set_params(imageembedder__image_size=96).predict(IMAGES)


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="the file holds a model of scikit-learn 1.9, which older ones do not read",
)
def test_a_model_file_that_version_0_1_wrote_predicts_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # its cache is a folder here
    model = load_model(Path(__file__).parent / "models" / "featx-0.1.skops")
    assert model[0].get_params()["cache"].folder == Path("cache-of-0.1")
    expected = [0.50119126, 0.50086915, 0.50006753, 0.49787104]
    np.testing.assert_allclose(model.predict_proba(IMAGES)[:, 0], expected, atol=1e-6)


def test_a_linear_head_of_version_0_1_is_read(tmp_path: Path) -> None:
    head = LinearHeadClassifier(device="cpu", epochs=1).fit(np.eye(4, dtype=np.float32), LABELS)
    save_model(head, tmp_path / "model.skops")
    as_0_1_wrote_it(tmp_path / "model.skops")
    loaded = load_model(tmp_path / "model.skops")
    np.testing.assert_array_equal(loaded.predict_proba(np.eye(4)), head.predict_proba(np.eye(4)))


def test_no_other_name_of_old_slips_through(tmp_path: Path) -> None:
    save_model(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), tmp_path / "model.skops")

    def change(schema: str) -> str:
        state = json.loads(schema)
        state["__module__"], state["__class__"] = "featx.embedder", "os"
        return json.dumps(state)

    rewritten(tmp_path / "model.skops", change)
    with pytest.raises(UntrustedModelError, match=r"featx\.embedder\.os"):
        load_model(tmp_path / "model.skops")


def test_a_model_of_one_runtime_predicts_with_another(tmp_path: Path) -> None:
    embedder = ImageEmbedder(**TINY | {"runtime": "torch"})
    model = make_pipeline(embedder, LogisticRegression()).fit(IMAGES, LABELS)
    save_model(model, tmp_path / "model.skops")
    loaded = load_model(tmp_path / "model.skops")
    loaded[0].set_params(runtime="onnx")
    probabilities = loaded.predict_proba(IMAGES)
    np.testing.assert_allclose(probabilities, model.predict_proba(IMAGES), atol=1e-5)
    assert loaded[0].recipe_ == model[0].recipe_
    with pytest.raises(StaleEmbedderError, match="recipe"):
        loaded.set_params(imageembedder__layers="blocks.2").predict(IMAGES)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x04}."])
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.skops").write_bytes(content)
    with pytest.raises(SchemaError) as caught:
        load_model(tmp_path / "model.skops")
    assert "\n" not in str(caught.value)


def test_a_model_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = skops.io.dumps(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
    for end in np.linspace(1, len(whole) - 1, 10, dtype=int):
        (tmp_path / "model.skops").write_bytes(whole[:end])
        with pytest.raises(FeatxError):
            load_model(tmp_path / "model.skops")


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model file"):
        load_model(tmp_path / "absent.skops")
    with pytest.raises(InputError, match="does not exist"):
        save_model(LogisticRegression(), tmp_path / "absent" / "model.skops")


def test_a_failed_write_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.skops"
    save_model(LogisticRegression(C=1.0), target)
    before = target.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_model(LogisticRegression(C=2.0), target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_in_the_package_can_load_a_pickle() -> None:
    package = Path(skops.io.__file__).parent  # only to show that the search below finds something
    assert any("pickle" in path.read_text() for path in package.rglob("*.py"))
    import featx

    for path in Path(featx.__file__).parent.rglob("*.py"):
        if path.parent.name == "testing":
            continue  # its checks pickle a transformer and read that back at once
        text = path.read_text(encoding="utf-8")
        for word in ("joblib.load", "pickle.load", "allow_pickle", "yaml.load", "eval(", "exec("):
            assert word not in text.replace(".eval()", ""), f"{word} in {path}"
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, path


@pytest.mark.parametrize(
    "classifier",
    [
        HistGradientBoostingClassifier(max_iter=3),
        make_pipeline(PCA(2), KNeighborsClassifier(2, algorithm="kd_tree")),
        KNeighborsClassifier(2, algorithm="ball_tree", metric="manhattan"),
        VotingClassifier([("tree", DecisionTreeClassifier()), ("linear", LogisticRegression())]),
        StackingClassifier([("linear", LogisticRegression())], cv=2),
        GridSearchCV(LogisticRegression(), {"C": [1.0, 3.0]}, cv=2, scoring="f1_macro"),
    ],
    ids=lambda classifier: type(classifier).__name__,
)
def test_any_classifier_of_scikit_learn_is_kept(classifier: Any, tmp_path: Path) -> None:
    X, y = make_classification(60, random_state=0)
    model = classifier.fit(X, y)
    save_model(model, tmp_path / "model.skops")
    loaded = load_model(tmp_path / "model.skops")
    assert np.array_equal(loaded.predict(X), model.predict(X))


@pytest.mark.parametrize("name", ["os.system", "sklearn.ensemble._forest.threading", "sklearn.x.Y"])
def test_what_a_trusted_module_only_imports_is_not_trusted(name: str) -> None:
    assert _refused_types([name, "sklearn.tree._tree.Tree"]) == [name]
