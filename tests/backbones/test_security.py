"""Hostile and damaged weights files: refused, nothing of them runs, nothing is left behind."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from weights_files import (
    TORCHVISION_NAME,
    TORCHVISION_TAG,
    fill_hugging_face_cache,
    offsets,
    sha256,
    timm_tensors,
)

from featx import load_backbone
from featx._errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORK = "timm/test_efficientnet"


class Payload:
    """Touches a file when it is unpickled by something that runs what it reads."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


PAYLOADS: dict[str, Callable[[Payload], bytes]] = {
    "a pickle": pickle.dumps,
    "an old pickle": lambda payload: pickle.dumps(payload, protocol=0),
    "torch.save": lambda payload: saved(payload),
    "torch.save of old": lambda payload: saved(payload, _use_new_zipfile_serialization=False),
    "beside the tensors": lambda payload: saved(timm_tensors() | {"hook": payload}),
    "inside a wrapper": lambda payload: saved({"state_dict": timm_tensors(), "args": payload}),
}


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def safetensors_bytes(tmp_path: Path) -> bytes:
    file = tmp_path / "draft"
    save_file(timm_tensors(), file)
    content = file.read_bytes()
    file.unlink()
    return content


def assert_refused(file: Path, pin: str = "") -> None:
    before = sorted(file.parent.iterdir())
    with pytest.raises(WeightsError, match="weights"):
        load_backbone(NETWORK, weights=f"{file}{pin}")
    assert sorted(file.parent.iterdir()) == before


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_payload_never_runs(kind: str, suffix: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(PAYLOADS[kind](Payload(marker)))
    assert_refused(file)
    assert not marker.exists()


def test_the_payload_of_these_tests_would_run_elsewhere(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_a_payload_with_the_right_digest_never_runs_from_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    content = PAYLOADS["inside a wrapper"](Payload(marker))
    draft = tmp_path / "draft.pth"
    draft.write_bytes(content)
    server = draft.rename(tmp_path / f"net-{sha256(draft)[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(TORCHVISION_TAG.value, "url", server.as_uri())
    with pytest.raises(WeightsError, match="not a file of tensors alone"):
        load_backbone(TORCHVISION_NAME, download=True)
    hub = tmp_path / "huggingface"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    fill_hugging_face_cache(hub, lambda file: file.write_bytes(content), "pytorch_model.bin")
    with pytest.raises(WeightsError, match="not a file of tensors alone"):
        load_backbone(NETWORK)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused_at_every_offset(suffix: str, tmp_path: Path) -> None:
    whole = saved(timm_tensors()) if suffix == ".pth" else safetensors_bytes(tmp_path)
    file = tmp_path / f"weights{suffix}"
    for offset in offsets(len(whole)):
        file.write_bytes(whole[:offset])
        assert_refused(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_tampered_byte_is_refused_where_the_digest_is_known(suffix: str, tmp_path: Path) -> None:
    whole = saved(timm_tensors()) if suffix == ".pth" else safetensors_bytes(tmp_path)
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(whole)
    pin = f"#sha256={sha256(file)}"
    load_backbone(NETWORK, weights=f"{file}{pin}")
    for offset in offsets(len(whole)):
        tampered = bytearray(whole)
        tampered[offset] ^= 1
        file.write_bytes(tampered)
        assert_refused(file, pin)


def test_a_tampered_byte_of_a_packaged_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featx._backbones.catalog import PACKAGED
    from featx._backbones.downloads import PackagedWeights

    packaged = PACKAGED["efficientnet_lite0"].published
    original = packaged.find()
    assert original is not None
    content = bytearray(original.read_bytes())
    content[len(content) // 2] ^= 1
    tampered = tmp_path / original.name
    tampered.write_bytes(content)
    monkeypatch.setattr(PackagedWeights, "find", lambda self: tampered)
    with pytest.raises(WeightsError, match=f"expected {packaged.sha256}; it is damaged"):
        load_backbone("efficientnet_lite0")


def test_noise_is_refused(tmp_path: Path) -> None:
    for seed in range(20):
        noise = torch.randint(256, (4096,), generator=torch.Generator().manual_seed(seed))
        for suffix in (".pth", ".safetensors"):
            file = tmp_path / f"weights{suffix}"
            # The first byte says "pickle" to whoever looks: the parser must get to the rest.
            file.write_bytes(b"\x80" + bytes(noise.tolist()))
            assert_refused(file)


def header(length: int | None = None, **tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(begin: int, end: int, shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "a header of 2^63 bytes": header(2**63) + bytes(16),
    "a header longer than the file": header(1 << 20, a=tensor(0, 4, [1])) + bytes(4),
    "a header above the limit": struct.pack("<Q", 200_000_000) + bytes(64),
    "a negative length": struct.pack("<q", -1) + bytes(16),
    "no header": b"",
    "half a length": b"\x01\x00\x00",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "overlapping tensors": header(a=tensor(0, 8, [2]), b=tensor(4, 12, [2])) + bytes(12),
    "the same bytes twice": header(a=tensor(0, 8, [2]), b=tensor(0, 8, [2])) + bytes(8),
    "a hole": header(a=tensor(0, 4, [1]), b=tensor(8, 12, [1])) + bytes(12),
    "negative offsets": header(a=tensor(-4, 0, [1])) + bytes(4),
    "a negative shape": header(a=tensor(0, 4, [-1])) + bytes(4),
    "offsets that go backwards": header(a=tensor(4, 0, [1])) + bytes(4),
    "offsets beyond the file": header(a=tensor(0, 4096, [1024])) + bytes(4),
    "bytes that nobody owns": header(a=tensor(0, 4, [1])) + bytes(64),
    "a shape that overflows": header(a=tensor(0, 4, [2**62, 2**62])) + bytes(4),
    "a shape of other size": header(a=tensor(0, 4, [3])) + bytes(4),
    "no such kind of number": header(a=tensor(0, 4, [1], "X99")) + bytes(4),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_safetensors_header_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(HOSTILE[kind])
    with pytest.raises(WeightsError, match=r"not a (whole safetensors file|file of tensors)"):
        load_backbone(NETWORK, weights=str(file))
