"""Faults planted one by one into a copy of the project, to see that the normal run finds each.

    python tests/planted_faults.py               # all, some minutes
    python tests/planted_faults.py lost-exif     # those that are named

Each fault is one replacement in one function, which must apply exactly once, and names the tests
of the normal run that have to fail. The exit code is 1 where a fault was not found.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Fault:
    """A fault, where it is planted, and who has to find it.

    Attributes
    ----------
    name : str
        What goes wrong.
    place : str
        The file in the package and the function or class in it, as ``file.py:Class.method``.
    old, new : str
        The text that is replaced there, and what takes its place.
    tests : str
        What is passed to pytest: files or tests of the normal run.
    """

    name: str
    place: str
    old: str
    new: str
    tests: str


FAULTS = [
    # The stream
    Fault(
        "neighbours-row-served",
        "_extraction/parcels.py:OpenParcel.place",
        "for digest in digests]",
        "for digest in reversed(list(digests))]",
        "tests/test_laws.py",
    ),
    Fault(
        "zeros-for-unreadable",
        "_extraction/parcels.py:OpenParcel.close",
        "= np.nan",
        "= 0.0",
        "tests/test_embedder.py",
    ),
    Fault(
        "off-by-one-in-parcels",
        "_extraction/parcels.py:OpenParcel.item",
        "self.items[row - self.start]",
        "self.items[row - self.start - 1]",
        "tests/test_laws.py",
    ),
    Fault(
        "repeats-not-filled",
        "_extraction/parcels.py:OpenParcel.close",
        "for row in rows[1:]]",
        "for row in rows[2:]]",
        "tests/test_laws.py tests/test_exactly_once.py",
    ),
    Fault(
        "digest-of-the-path",
        "_extraction/contents.py:Contents._digest",
        "digest_content(content), observation",
        "digest_content(str(item).encode()), observation",
        "tests/test_exactly_once.py",
    ),
    Fault(
        "nan-swallowed",
        "_extraction/stream.py:_Run._check_finite",
        "if not is_finite.all():",
        "if False:",
        "tests/test_embedder_faults.py",
    ),
    Fault(
        "views-not-averaged",
        "_extraction/batches.py:compute_batches",
        ".mean(axis=1, dtype=np.float32)",
        "[:, 0]",
        "tests/test_embedder_layers.py",
    ),
    Fault(
        "views-left-out-of-the-key",
        "_extraction/recipe.py:EmbeddingRecipe._cache_key_of",
        "views=self.views,",
        'views="center",',
        "tests/test_embedder_layers.py",
    ),
    # The store
    Fault(
        "stale-memo",
        "_store/memo.py:_identity",
        "status.st_mtime_ns, status.st_ctime_ns",
        "0, 0",
        "tests/test_embedder_memo.py",
    ),
    Fault(
        "claims-not-respected",
        "_store/claims.py:ClaimFolder.live",
        "return claimed",
        "return {}",
        "tests/store/test_store_claims.py tests/store/test_store_sharing.py",
    ),
    Fault(
        "checksums-not-compared",
        "_store/shards.py:Shard.read",
        "checksums(digests, vectors) == self._checksums[rows], vectors",
        "np.ones(len(vectors), np.bool_), vectors",
        "tests/store/test_store_cache.py tests/store/test_store_damage.py",
    ),
    # Images
    Fault(
        "lost-exif",
        "_images/decode.py:_pixels_from_jpeg",
        "orientation_in(header.exif)",
        "1",
        "tests/images/test_images_decode.py",
    ),
    Fault(
        "wrong-resize",
        "_images/preprocess.py:_interpolate",
        "antialias=True",
        "antialias=False",
        "tests/images/test_images_preprocess.py",
    ),
    Fault(
        "scale-of-16-bits",
        "_images/pixels.py:StoredNumbers",
        "white: int = _MAX_UINT16",
        "white: int = _MAX_UINT16 // 2",
        "tests/images/test_images_formats.py tests/images/test_images_decode.py",
    ),
    Fault(
        "labels-shuffled",
        "_images/folders.py:bunch_of_images",
        "np.array(labels, dtype=str)",
        "np.array(labels[::-1], dtype=str)",
        "tests/images/test_images_folders.py",
    ),
    # Networks
    Fault(
        "bgr",
        "_backbones/embedding_network.py:Normalization.forward",
        "if self._swaps_channels:",
        "if not self._swaps_channels:",
        "tests/test_fidelity.py",
    ),
    Fault(
        "pooled-wrongly",
        "_backbones/pooling.py:pool",
        "places.mean(dim=(rows, columns))\n    if pooling",
        "places.amax(dim=(rows, columns))\n    if pooling",
        "tests/backbones/test_pooling.py",
    ),
    Fault(
        "executable-pickle-accepted",
        "_backbones/weights.py:read_weights",
        "weights_only=True",
        "weights_only=False",
        "tests/backbones/test_security.py",
    ),
    Fault(
        "downloads-unasked",
        "_backbones/downloads.py:obtain_weights",
        "if not (download or _environment_allows_downloads()):",
        "if False:",
        "tests/backbones/test_providers.py",
    ),
    # Training
    Fault(
        "seed-ignored",
        "_finetuning/samples.py:derive_seed",
        "[seed, purpose, *place]",
        "[0, purpose, *place]",
        "tests/finetuning/test_fine_tuned_classifier.py tests/finetuning/test_engine.py",
    ),
    Fault(
        "checkpoint-of-another-identity",
        "_finetuning/checkpoints.py:Checkpoint.__init__",
        "json.dumps(description,",
        "json.dumps(sorted(description),",
        "tests/finetuning/test_checkpoints.py",
    ),
    # What comes out
    Fault(
        "export-row-mismatch",
        "_export/export.py:_Export._columns_beside",
        "of_all.slice(start, len(items))",
        "of_all.slice(0, len(items))",
        "tests/test_export.py",
    ),
    Fault(
        "untrusted-model-loaded",
        "_persistence.py:load_model",
        "if refused:",
        "if False:",
        "tests/test_persistence.py",
    ),
    Fault(
        "score-off",
        "_selection/labelled_embeddings.py:HeldOutScore.accuracy",
        "self.correct / self.total",
        "self.correct / (self.total + 1)",
        "tests/test_selection.py",
    ),
    Fault(
        "probability-of-another-class",
        "_prediction.py:_predict_parcel",
        "np.arange(len(rows)), places]",
        "np.arange(len(rows)), 0]",
        "tests/test_selection.py",
    ),
]


def plant(fault: Fault, package: Path) -> None:
    """Write a fault into the package below a folder.

    Raises
    ------
    LookupError
        If there is no such function, or the text does not stand in it exactly once.
    """
    name, _, function = fault.place.partition(":")
    path = package / name
    source = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for part in function.split("."):
        found = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == part
        ]
        if not found:
            raise LookupError(f"{fault.name}: there is no {function} in {name}")
        node = found[-1]  # behind its overloads
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    assert node.end_lineno is not None
    lines = source.splitlines(keepends=True)
    text = "".join(lines[node.lineno - 1 : node.end_lineno])
    if text.count(fault.old) != 1:
        count = text.count(fault.old)
        raise LookupError(f"{fault.name}: {fault.old!r} stands {count} times in {fault.place}")
    lines[node.lineno - 1 : node.end_lineno] = [text.replace(fault.old, fault.new)]
    path.write_text("".join(lines), encoding="utf-8")


def copy_project(folder: Path) -> None:
    """Copy what the tests need; what they only read is linked."""
    for name in ("featx", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("data", "examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")


def is_found(fault: Fault) -> bool:
    """Return whether the tests of a fault fail where it is planted."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "project"
        copy.mkdir()
        copy_project(copy)
        plant(fault, copy / "featx")
        command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *fault.tests.split()],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
    summary = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print("   ", *(summary or done.stdout.splitlines()[-1:]), sep="\n    ")
    return done.returncode == 1 and any(line.startswith("FAILED") for line in summary)


def main() -> int:
    parser = argparse.ArgumentParser()
    names = [fault.name for fault in FAULTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    chosen = parser.parse_args().names
    unknown = set(chosen) - set(names)
    if unknown:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    missed = []
    for fault in FAULTS:
        if chosen and fault.name not in chosen:
            continue
        begin = time.monotonic()
        print(fault.name, end="", flush=True)
        if not is_found(fault):
            missed.append(fault.name)
        verdict = "MISSED" if fault.name in missed else "found"
        print(f"    {verdict} in {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{len(missed)} missed", *missed)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
