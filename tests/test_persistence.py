"""Models on disk: what comes back, and what never runs."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from featx import EmbeddingCache, ImageEmbedder, load_model, save_model
from featx.errors import FeatxError, InputError, SchemaError, UntrustedModelError

TINY = {"backbone": "timm/test_efficientnet", "weights": None, "batch_size": 4, "device": "cpu"}
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
    assert loaded[0].fingerprint_ == model[0].fingerprint_
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), model.predict_proba(IMAGES))
    assert list(loaded.classes_) == ["dark", "light"]


def test_a_model_file_is_small_because_weights_stay_outside(tmp_path: Path) -> None:
    model = make_pipeline(ImageEmbedder(**TINY), LogisticRegression()).fit(IMAGES, LABELS)
    save_model(model, tmp_path / "model.skops")
    assert (tmp_path / "model.skops").stat().st_size < 100_000


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
