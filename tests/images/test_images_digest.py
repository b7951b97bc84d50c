"""Equal content has equal digests, different content different ones, however it lies in memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from featx._images.digest import digest_content

arrays = npst.arrays(
    st.sampled_from(["u1", "<f4", "<f8", ">f4", "<f2"]),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])),
)


@given(arrays)
def test_the_layout_in_memory_does_not_matter(array: np.ndarray) -> None:
    digest = digest_content(array)
    frozen = array.copy()
    frozen.flags.writeable = False
    padded = np.zeros((array.shape[0] * 2, array.shape[1] + 1, array.shape[2]), array.dtype)
    padded[::2, 1:] = array
    chw = np.ascontiguousarray(array.transpose(2, 0, 1)).transpose(1, 2, 0)
    for same in (frozen, np.asfortranarray(array), padded[::2, 1:], chw):
        assert digest_content(same) == digest


@given(arrays, st.data())
def test_a_single_changed_byte_changes_the_digest(array: np.ndarray, data: st.DataObject) -> None:
    changed = array.copy()
    flat = changed.reshape(-1).view(np.uint8)
    flat[data.draw(st.integers(0, flat.size - 1))] ^= 1
    assert digest_content(changed) != digest_content(array)


def test_shape_and_dtype_are_part_of_the_content() -> None:
    values = np.arange(48, dtype=np.uint8)
    variants = [
        values.reshape(4, 4, 3),
        values.reshape(2, 8, 3),
        values.reshape(6, 8, 1),
        values.view("<f4").reshape(2, 2, 3),
        values.view(">f4").reshape(2, 2, 3),
        values.view("<f2").reshape(4, 2, 3),
    ]
    assert len({digest_content(variant) for variant in variants}) == len(variants)


@given(arrays)
def test_a_file_that_spells_out_an_array_has_another_digest(array: np.ndarray) -> None:
    header = f"{array.dtype.str} {array.shape} ".encode()
    assert digest_content(header + array.tobytes()) != digest_content(array)
    assert digest_content(array.tobytes()) != digest_content(array)


@given(st.binary(max_size=500))
def test_a_digest_is_16_bytes_and_repeats(content: bytes) -> None:
    assert len(digest_content(content)) == 16
    assert digest_content(content) == digest_content(bytes(bytearray(content)))


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_digests_are_the_same_in_every_process(hash_seed: str) -> None:
    program = (
        "import numpy as np; from featx._images.digest import digest_content as d;"
        "print(d(b'featx').hex(), d(np.arange(12, dtype='u1').reshape(2, 2, 3)).hex())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    # Written down, because a changed digest makes every existing cache useless.
    assert printed == ["554deb91049f55caad4a09657c2d5752", "3929a3952d409a24c56e414a8a2ee66f"]
