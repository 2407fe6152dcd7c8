"""Arrays of numpy, torch, JAX, MLX and of a producer that has DLPack alone: the same bytes, no copy, clear refusals."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import (
    QuantizedTensor,
    dequantize,
    dequantize_groups,
    matmul,
    matmul_experts,
    matmul_groups,
    quantize,
    quantize_groups,
)
from quantkit.kernels.arrays import (
    byte_array,
    check_finite,
    float32_array,
    float_array,
    index_array,
    number_array,
    widened,
)

VALUES = np.random.default_rng(5).standard_normal((8, 512)).astype(np.float32)
BITS = torch.from_numpy(VALUES).bfloat16().view(torch.int16).numpy().view(np.uint16)


class Producer:
    """An array that can be read through DLPack and in no other way."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class OldProducer(Producer):
    """One of before DLPack 1.0, that does not know how to be asked for a version."""

    def __dlpack__(self) -> Any:  # type: ignore[override]
        return self._array.__dlpack__()


class Interface:
    """An array that has the array interface and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
        self._array = array


SOURCES: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda a: a,
    "torch": torch.from_numpy,
    "parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a)),
    "mlx": mx.array,
    "jax": jnp.asarray,
    "dlpack": lambda a: Producer(torch.from_numpy(a)),
    "dlpack numpy": Producer,
    "old dlpack": lambda a: OldProducer(torch.from_numpy(a)),
    "interface": Interface,
    "memoryview": memoryview,
    "list": lambda a: a.astype(np.float64).tolist(),
}
BFLOAT16S: dict[str, Callable[[np.ndarray], Any]] = {
    "uint16": lambda bits: bits,
    "ml_dtypes": lambda bits: bits.view(ml_dtypes.bfloat16),
    "torch": lambda bits: torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16),
    "parameter": lambda bits: torch.nn.Parameter(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)),
    "mlx": lambda bits: mx.array(bits).view(mx.bfloat16),
    "jax": lambda bits: jnp.asarray(bits.view(ml_dtypes.bfloat16)),
    "dlpack": lambda bits: Producer(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)),
    "old dlpack": lambda bits: OldProducer(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)),
}
VIEWS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda a: a,
    "transposed": lambda a: a.T,
    "rows": lambda a: a[2:5],
    "every other row": lambda a: a[::2],
    "columns": lambda a: a[:, 256:],
}


@pytest.mark.parametrize("source", SOURCES)
def test_quantized_bytes_are_those_of_numpy(source: str) -> None:
    assert np.array_equal(quantize(SOURCES[source](VALUES), "q4_k"), quantize(VALUES, "q4_k"))


@pytest.mark.parametrize("source", BFLOAT16S)
def test_bfloat16_is_read_from_everywhere(source: str) -> None:
    array, type = float_array(BFLOAT16S[source](BITS))
    assert type == "bf16"
    assert np.array_equal(array, BITS)
    widened_before = BITS.view(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(quantize(BFLOAT16S[source](BITS), "q6_k"), quantize(widened_before, "q6_k"))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_is_read_in_place_whatever_its_strides(dtype: torch.dtype, view: str) -> None:
    tensor = VIEWS[view](torch.from_numpy(VALUES).to(dtype))
    array, type = float_array(tensor)
    assert array.ctypes.data == tensor.data_ptr()
    assert array.strides == tuple(step * tensor.element_size() for step in tensor.stride())
    assert np.array_equal(widened(array, type), tensor.float().numpy())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_mlx_is_read_whatever_its_strides(dtype: mx.Dtype, view: str) -> None:
    matrix = VIEWS[view](mx.array(VALUES).astype(dtype))
    array, type = float_array(matrix)
    assert np.array_equal(widened(array, type), np.array(matrix.astype(mx.float32)))
    if dtype != mx.bfloat16:
        assert np.shares_memory(array, np.array(matrix, copy=False))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_jax_is_read_in_place(dtype: Any, view: str) -> None:
    """JAX has no strides: what a view shows is an array of its own, which is read where it lies."""
    matrix = VIEWS[view](jnp.asarray(VALUES).astype(dtype))
    array, type = float_array(matrix)
    assert type == {jnp.float32: "f32", jnp.float16: "f16", jnp.bfloat16: "bf16"}[dtype]
    assert array.ctypes.data == matrix.unsafe_buffer_pointer()
    assert np.array_equal(widened(array, type), np.asarray(matrix.astype(jnp.float32)))


def test_jax_all_the_way() -> None:
    """Weights, packed bytes, words, scales, activations and numbers of experts come in, and results go back."""
    weights, x, ids = jnp.asarray(VALUES).reshape(2, 4, 512), jnp.asarray(VALUES[:3]), jnp.array([1, 0, 1])
    packed = quantize(weights, "q4_k")
    given = jnp.asarray(packed)
    assert byte_array(given).ctypes.data == given.unsafe_buffer_pointer()
    assert QuantizedTensor(given, "q4_k").packed.ctypes.data == given.unsafe_buffer_pointer()
    for mode in ("exact", "fast"):
        expected = matmul(VALUES[:3], packed[0], "q4_k", mode=mode)
        y = jnp.asarray(matmul(x, given[0], "q4_k", mode=mode))
        assert y.dtype == jnp.float32
        assert np.array_equal(y, expected)
        expected = matmul_experts(VALUES[:3], packed, "q4_k", [1, 0, 1], scale=VALUES[:3, 0], mode=mode)
        assert np.array_equal(matmul_experts(x, given, "q4_k", ids, scale=x[:, 0], mode=mode), expected)
    groups = quantize_groups(weights[0], 4, 64, importance=jnp.ones(512), scale_dtype="f16")
    qt = QuantizedTensor(jnp.asarray(groups[0]), "int4_g64", *map(jnp.asarray, groups[1:]))
    assert all(np.array_equal(held, part) for held, part in zip(qt.parts().values(), groups, strict=True))
    half = qt.dequantize(jnp.bfloat16)
    assert jnp.asarray(half).dtype == jnp.bfloat16
    assert np.array_equal(jnp.asarray(half), half)


def test_jax_has_no_values_while_it_traces() -> None:
    with pytest.raises(UsageError, match=r"weights, a jax.*Tracer, cannot be read through DLPack"):
        jax.jit(lambda x: float_array(x, "weights")[0])(VALUES)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(1000, 7).bfloat16(),
        lambda: mx.full((1000, 7), 1.0, mx.bfloat16),
        lambda: jnp.ones((1000, 7), jnp.bfloat16),
    ],
)
def test_memory_outlives_its_owner(make: Callable[[], Any]) -> None:
    arrays = [float_array(make())[0] for _ in range(50)]  # nothing else holds them
    assert all((array == 0x3F80).all() for array in arrays)


def test_read_only_arrays_are_read_in_place() -> None:
    values = VALUES.copy()
    values.flags.writeable = False
    for given in (values, Producer(values), memoryview(values)):
        assert np.shares_memory(float_array(given)[0], values)


def test_what_cannot_be_read_in_place_is_converted() -> None:
    unaligned = np.frombuffer(b"\0" + VALUES.tobytes(), np.uint8)[1:].view(np.float32).reshape(VALUES.shape)
    assert not unaligned.flags.aligned
    for given in (unaligned, VALUES.astype(">f4"), VALUES.astype(np.float64), torch.from_numpy(VALUES).double()):
        array, type = float_array(given)
        assert type == "f32"
        assert array.flags.aligned
        assert array.dtype.isnative
        assert np.array_equal(array, VALUES)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros(3, np.int32), "weights has dtype int32\nGive float32, float16, bfloat16"),
        (np.zeros(3, ml_dtypes.float8_e4m3fn), "weights has dtype float8_e4m3fn"),
        (np.zeros(3, complex), "weights has dtype complex128"),
        (torch.zeros(3, dtype=torch.int64), "weights has dtype int64"),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), "weights has dtype float8_e4m3fn"),
        (torch.zeros(3, dtype=torch.complex64), "weights has dtype complex64"),
        (torch.zeros(3, device="meta"), "weights, a torch.Tensor, cannot be read through DLPack: .*meta\n.*CPU"),
        (torch.zeros(3, 3).to_sparse(), "weights, a torch.Tensor, cannot be read through DLPack: .*layout"),
        (mx.zeros((3,), mx.int32), "weights has dtype int32"),
        (jnp.zeros(3, jnp.int32), "weights has dtype int32"),
        ([[1.0, 2.0], [3.0]], "weights is a builtins.list that is no array"),
        ("text", "weights has dtype <U4"),
        (None, "weights has dtype object"),
    ],
)
def test_what_is_no_array_of_floats(value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        float_array(value, "weights")


class Elsewhere(Producer):
    """An array whose capsule says that it lies on a device (int32 device_type stands behind DLPack's data pointer)."""

    device = 2

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = self.device
        return capsule


@pytest.mark.parametrize(
    ("device", "words"), [(2, "a CUDA device"), (8, "a Metal device"), (77, "a device of DLPack type 77")]
)
def test_another_device_is_named(device: int, words: str) -> None:
    there = Elsewhere(np.zeros((2, 256), np.int16))
    there.device = device
    with pytest.raises(UsageError, match=rf"weights lies on {words}\nMove it to the CPU first"):
        float_array(there, "weights")


def test_metal_memory_of_mlx_is_read_through_the_buffer_protocol() -> None:
    class Array(Elsewhere):
        device = 8
        __module__ = "mlx.core"

        def view(self, dtype: mx.Dtype) -> mx.array:
            return self._array.view(dtype)

        def __array__(self, *args: Any, **options: Any) -> np.ndarray:
            return np.array(self._array, copy=False)

    assert np.array_equal(float_array(Array(mx.array(VALUES)))[0], VALUES)
    array, type = float_array(Array(mx.array(BITS).view(mx.bfloat16)))
    assert type == "bf16"
    assert np.array_equal(array, BITS)


def test_float32_of_a_shape() -> None:
    given = torch.from_numpy(VALUES).bfloat16().T
    array = float32_array(given, "scale", shape=(512, 8))
    assert array.flags.c_contiguous
    assert np.array_equal(array, given.float().numpy())
    assert np.shares_memory(float32_array(VALUES), VALUES)
    with pytest.raises(UsageError, match=re.escape("scale has shape (8, 512), not (512, 8)")):
        float32_array(VALUES, "scale", shape=(512, 8))


@pytest.mark.parametrize("type", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_by_its_index(type: Any, value: float) -> None:
    values = np.full((3, 700_000), np.finfo(np.float16).max, np.float32).astype(type)
    check_finite(*float_array(values))
    values[2, 31] = value
    with pytest.raises(NonFiniteError, match=re.escape(f"x: {value} at row 2, column 31 is not finite")):
        check_finite(*float_array(values), "x")
    with pytest.raises(NonFiniteError, match=re.escape(f"x: {value} at index [0, 2, 31]")):
        float32_array(values[None], "x")


def test_bytes() -> None:
    packed = quantize(VALUES, "q8_0")
    for given in (packed, torch.from_numpy(packed), mx.array(packed), jnp.asarray(packed), np.asfortranarray(packed)):
        assert np.array_equal(dequantize(given, "q8_0"), dequantize(packed, "q8_0"))
        assert byte_array(given).flags.c_contiguous
    assert np.shares_memory(byte_array(torch.from_numpy(packed), block_bytes=34), packed)
    for wrong in (packed.view(np.int8), packed[:, :33], packed[0, 0], torch.zeros(34)):
        with pytest.raises(UsageError, match="packed must be uint8 with rows of whole 34-byte blocks, not"):
            byte_array(wrong, block_bytes=34)


@pytest.mark.parametrize("make", [torch.from_numpy, mx.array, jnp.asarray, Producer, np.asfortranarray])
def test_words_of_groups(make: Callable[[np.ndarray], Any]) -> None:
    parts = quantize_groups(VALUES, 4, 64)
    given = make(parts[0])
    assert np.array_equal(dequantize_groups(given, *parts[1:], 4, 64), dequantize_groups(*parts, 4, 64))
    assert np.array_equal(matmul_groups(VALUES, given, *parts[1:]), matmul_groups(VALUES, *parts))
    for wrong in (torch.zeros(8, 64), jnp.zeros((8, 64), jnp.int32)):
        with pytest.raises(UsageError, match=r"packed must be uint32 \(..., words\), not (float|int)32"):
            dequantize_groups(wrong, *parts[1:], 4, 64)


def test_numbers() -> None:
    assert number_array(np.array([1, 2], np.uint16)).tolist() == [1, 2]  # not bfloat16 here
    assert number_array(torch.tensor([1.5, 2.0]).bfloat16()).tolist() == [1.5, 2.0]
    assert number_array(np.array([1.5], ml_dtypes.bfloat16)).tolist() == [1.5]
    with pytest.raises(UsageError, match="importance has dtype complex128"):
        number_array(np.ones(2, complex), "importance")


@pytest.mark.parametrize(
    "given",
    [np.array([0, 3, 1], np.uint16), torch.tensor([0, 3, 1]), mx.array([0, 3, 1]), jnp.array([0, 3, 1]), [0, 3, 1]],
)
def test_indices(given: Any) -> None:
    ids = index_array(given, "expert_ids", length=3, limit=4)
    assert ids.dtype == np.int64
    assert ids.tolist() == [0, 3, 1]
    with pytest.raises(UsageError, match=re.escape("expert_ids: 3 at row 1 is not in 0 .. 2")):
        index_array(given, "expert_ids", length=3, limit=3)
    with pytest.raises(UsageError, match=re.escape("expert_ids has shape (3,), not (4,)")):
        index_array(given, "expert_ids", length=4, limit=4)


@pytest.mark.parametrize("given", [[-1], np.array([2**63], np.uint64)])
def test_indices_out_of_range(given: Any) -> None:
    with pytest.raises(UsageError, match=r"expert_ids: -?\d+ at row 0 is not in 0 .. 15"):
        index_array(given, "expert_ids", length=1, limit=16)


@pytest.mark.parametrize("given", [[0.0], [True], np.zeros(1, ml_dtypes.bfloat16), torch.zeros(1)])
def test_indices_are_whole_numbers(given: Any) -> None:
    with pytest.raises(UsageError, match="expert_ids has dtype"):
        index_array(given, "expert_ids", length=1, limit=16)


@pytest.mark.parametrize("weights", [np.zeros((2, 100), np.float32), torch.zeros(2, 100)])
def test_rows_that_are_not_whole_blocks(weights: Any) -> None:
    with pytest.raises(UsageError, match="a row of 100 is not a whole number"):
        quantize(weights, "q4_k")
