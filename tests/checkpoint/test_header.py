"""Our reader of safetensors files beside the `safetensors` package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from quantkit.checkpoint import DTYPE_BITS, byte_size
from quantkit.checkpoint.header import read_header
from quantkit.errors import CheckpointError

DTYPES = [
    *map(np.dtype, ("bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8")),
    *map(np.dtype, (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu)),
]

FILES = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text(max_size=12).filter(lambda name: name != "__metadata__"), max_size=5, unique=True))
    found = {}
    for name in names:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        n_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
        found[name] = np.frombuffer(draw(st.binary(min_size=n_bytes, max_size=n_bytes)), dtype).reshape(shape)
    return found


def ours(path: Path) -> dict[str, tuple[Any, ...]]:
    data = path.read_bytes()
    return {
        entry.name: (entry.dtype, entry.shape, data[entry.offset_bytes : entry.offset_bytes + entry.n_bytes])
        for entry in read_header(path).entries
    }


def theirs(data: bytes) -> dict[str, tuple[Any, ...]]:
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in deserialize(data)}


def write(path: Path, header: bytes | dict[str, Any], payload: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return path


@FILES
@given(tensors(), st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1, max_size=2))
def test_a_valid_file_is_read_as_it_was_written(
    tmp_path: Path, found: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.numpy.save(found, metadata))
    read = ours(path)
    assert read == theirs(path.read_bytes())
    assert {name: (shape, data) for name, (_, shape, data) in read.items()} == {
        name: (array.shape, array.tobytes()) for name, array in found.items()
    }
    assert read_header(path).metadata == (metadata or {})


@FILES
@given(tensors(), st.data())
def test_a_changed_byte_is_refused_or_read_as_the_package_reads_it(
    tmp_path: Path, found: dict[str, np.ndarray], data: st.DataObject
) -> None:
    whole = bytearray(safetensors.numpy.save(found))
    n_header = 8 + int.from_bytes(whole[:8], "little")
    # Several at a time, each alone, so that one file serves many tries.
    for at in data.draw(st.lists(st.integers(0, n_header - 1), min_size=8, max_size=8)):
        changed = bytearray(whole)
        changed[at] ^= data.draw(st.integers(1, 255))
        path = tmp_path / "a.safetensors"
        path.write_bytes(changed)
        try:
            read = ours(path)
        except CheckpointError:
            continue
        assert read == theirs(bytes(changed))


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_has_the_size_that_the_package_gives_it(tmp_path: Path, dtype: str) -> None:
    n_bytes = byte_size(dtype, (4, 2))
    assert n_bytes == DTYPE_BITS[dtype]
    header = {"a": {"dtype": dtype, "shape": [4, 2], "data_offsets": [0, n_bytes]}}
    path = write(tmp_path / "a.safetensors", header, bytes(range(n_bytes)))
    assert ours(path) == theirs(path.read_bytes()) == {"a": (dtype, (4, 2), bytes(range(n_bytes)))}


def test_sizes_that_no_file_can_have() -> None:
    assert byte_size("F4", (3, 2)) == 3
    for dtype, shape, why in (
        ("F4", (3,), "whole bytes"),
        ("F6_E2M3", (2, 3), "whole bytes"),
        ("BF16", (2**32, 2**32), "overflows"),
        ("U8", (2**40, 2**40, 0), "overflows"),
        ("Q4", (1,), "dtype"),
    ):
        with pytest.raises(ValueError, match=why):
            byte_size(dtype, shape)


OK = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', "negative"),
        (b'{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}', "not a list of sizes"),
        (b'{"a":{"dtype":"U8","shape":[true,4],"data_offsets":[0,4]}}', "not a list of sizes"),
        (b'{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4]}}', "above 2"),
        (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', "above 2"),
        (b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{}}', "'a' is given twice"),
        (b'{"a":{"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]}}', "'shape' is given twice"),
        (b'{"a\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', "surrogate"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        ({"a": OK | {"strides": [1]}}, "nothing else"),
        ({"a": OK, "__metadata__": {"format": 1}}, "__metadata__"),
        ({"a": OK | {"data_offsets": [4, 0]}}, "begin at 4 and end before"),
        ({"a": OK | {"data_offsets": [0, 4, 8]}}, r"not \[begin, end\]"),
        ({"a": OK | {"dtype": "F5"}}, "tensor 'a': unknown dtype 'F5'"),
        ({"a": OK | {"dtype": "F4", "shape": [7], "data_offsets": [0, 4]}}, "whole bytes"),
        ({"a": OK | {"shape": [5]}}, "takes 5 bytes, its data_offsets span 4"),
        ({"a": OK, "b": OK}, "'b' overlaps 'a'"),
        ({"a": OK | {"shape": [3], "data_offsets": [1, 4]}}, "hole of 1 bytes before tensor 'a'"),
        ({"a": OK | {"shape": [3], "data_offsets": [0, 3]}}, "1 bytes lie behind"),
        ({"a": OK | {"shape": [9], "data_offsets": [0, 9]}}, "5 bytes are missing at the end"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value.replace(" ", "-"),
)
def test_what_the_format_forbids(tmp_path: Path, header: bytes | dict[str, Any], match: str) -> None:
    path = write(tmp_path / "a.safetensors", header, b"abcd")
    with pytest.raises(CheckpointError, match=match) as caught:
        read_header(path)
    assert str(path) in caught.value.what


def test_a_payload_byte_is_never_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": {"dtype": "BF16", "shape": [2**39], "data_offsets": [0, 2**40]}})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**40)  # a sparse terabyte
    (entry,) = read_header(path).entries
    assert entry.n_bytes == 2**40
    with pytest.raises(SafetensorError):  # the oracle at work: one byte more is refused by both
        deserialize(b"\x02\0\0\0\0\0\0\0{}x")
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}x")
    with pytest.raises(CheckpointError, match="behind the last tensor"):
        read_header(path)
