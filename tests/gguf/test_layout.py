"""The planned header and offsets, filled with data, must be a GGUF that the `gguf` package and llama.cpp read back."""

from __future__ import annotations

import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf import GGUFValueType as V
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import PlanRefusedError, UsageError
from quantkit.gguf import Field, FilePlan, lay_out, parse_split_size

ARCHITECTURE = Field("general.architecture", "llama4", V.STRING)


def write(plan: FilePlan, values: dict[str, bytes]) -> None:
    data = bytearray(plan.n_bytes)
    data[: len(plan.header)] = plan.header
    for name, offset in plan.offsets.items():
        data[offset : offset + len(values[name])] = values[name]
    plan.path.write_bytes(data)


def test_equals_the_package_writer_byte_for_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    fields = [
        ARCHITECTURE,
        Field("a.u8", 200, V.UINT8),
        Field("a.i64", -(2**40), V.INT64),
        Field("a.f32", 0.1, V.FLOAT32),
        Field("a.f64", 0.1, V.FLOAT64),
        Field("a.bool", True, V.BOOL),
        Field("a.text", "größer 🦙", V.STRING),
        Field("a.list", ["x", "", "é"], V.ARRAY, V.STRING),
        Field("a.ids", [1, -2], V.ARRAY, V.INT32),
        Field("a.guess", [0.5, 1.5], V.ARRAY),
    ]
    arrays = {
        "one.weight": rng.standard_normal(5, dtype=np.float32),
        "two.weight": rng.standard_normal((3, 7), dtype=np.float32),
        "four.weight": rng.standard_normal((2, 3, 1, 32), dtype=np.float32),
    }
    quantized = rng.integers(0, 100, (4, 18 * 2), dtype=np.uint8)

    peer = gguf.GGUFWriter(tmp_path / "peer.gguf", "llama4")
    for field in fields[1:]:
        peer.add_key_value(field.key, field.value, field.type, field.sub_type)
    for name, array in arrays.items():
        peer.add_tensor(name, array)
    peer.add_tensor("q.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    peer.write_header_to_file()
    peer.write_kv_data_to_file()
    peer.write_tensors_to_file()
    peer.close()

    tensors = [(name, array.shape, "f32") for name, array in arrays.items()] + [("q.weight", (4, 64), "q4_0")]
    (plan,) = lay_out(fields, tensors, path=tmp_path / "ours.gguf")
    write(plan, {name: array.tobytes() for name, array in arrays.items()} | {"q.weight": quantized.tobytes()})
    assert plan.path.read_bytes() == (tmp_path / "peer.gguf").read_bytes()


shapes = st.lists(st.integers(1, 9), min_size=0, max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from(["f32", "bf16", "q8_0", "q4_k"])), min_size=1, max_size=8), st.data())
def test_offsets_are_aligned_consecutive_and_whole(items: list[tuple[list[int], str]], data: st.DataObject) -> None:
    tensors = [(f"t{i}", (*shape, 256), name) for i, (shape, name) in enumerate(items)]
    limit = data.draw(st.sampled_from([None, 1, 5_000, 50_000]))
    plans = lay_out([ARCHITECTURE], tensors, path=Path("out.gguf"), split_max_bytes=limit)
    sizes = {n: int(np.prod(s)) * b // k for n, s, t in tensors for k, b in [gguf.GGML_QUANT_SIZES[_type(t)]]}
    assert [name for plan in plans for name in plan.offsets] == [name for name, _, _ in tensors]
    for plan in plans:
        end = len(plan.header)
        for name, offset in plan.offsets.items():
            assert offset == end
            assert offset % 32 == 0
            end = offset + -(-sizes[name] // 32) * 32
        assert end == plan.n_bytes
        total = sum(sizes[name] for name in plan.offsets)
        assert limit is None or total <= limit or len(plan.offsets) == 1


def _type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def test_splits_have_llama_cpp_names_keys_and_load_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays = {f"blk.{i}.w.weight": rng.standard_normal((8, 32), dtype=np.float32) for i in range(5)}
    tensors = [(name, array.shape, "f32") for name, array in arrays.items()]
    whole_numbers = ("context_length", "embedding_length", "attention.head_count", "expert_feed_forward_length")
    fields = [ARCHITECTURE, Field("llama4.block_count", 5, V.UINT32)]
    fields += [Field(f"llama4.{key}", 32, V.UINT32) for key in whole_numbers]
    fields += [Field("llama4.interleave_moe_layer_step", 1, V.UINT32)]
    fields += [Field("llama4.attention.layer_norm_rms_epsilon", 1e-5, V.FLOAT32)]
    plans = lay_out(fields, tensors, path=tmp_path / "m.gguf", split_max_bytes=2048)
    for plan in plans:
        write(plan, {name: array.tobytes() for name, array in arrays.items()})
    assert [plan.path.name for plan in plans] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for i, plan in enumerate(plans):
        reader = gguf.GGUFReader(plan.path)
        split = {k: (f.parts[-1][0], f.types[0]) for k, f in reader.fields.items() if k.startswith("split.")}
        assert split == {
            "split.no": (i, V.UINT16),
            "split.count": (3, V.UINT16),
            "split.tensors.count": (5, V.INT32),
        }
        assert ("llama4.block_count" in reader.fields) == (i == 0)
        for tensor in reader.tensors:
            assert np.array_equal(tensor.data, arrays[tensor.name])
            assert tensor.data_offset == plan.offsets[tensor.name]
    # llama.cpp follows the splits, checks their keys, and copies what it found.
    params = llama_cpp.llama_model_quantize_default_params()
    params.only_copy = True
    copied = tmp_path / "copied.gguf"
    assert llama_cpp.llama_model_quantize(bytes(plans[0].path), bytes(copied), params) == 0
    assert {t.name: t.data.tobytes() for t in gguf.GGUFReader(copied).tensors} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_one_split_is_no_split() -> None:
    (plan,) = lay_out([ARCHITECTURE], [("t", (32,), "f32")], path=Path("m.gguf"), split_max_bytes=10**9)
    assert plan.path == Path("m.gguf")
    assert b"split." not in plan.header


def test_header_of_a_large_vocabulary_is_quick() -> None:
    vocab = [f"token{i}" for i in range(202_048)]
    fields = [
        ARCHITECTURE,
        Field("tokenizer.ggml.tokens", vocab, V.ARRAY, V.STRING),
        Field("tokenizer.ggml.token_type", [1] * len(vocab), V.ARRAY, V.INT32),
        Field("tokenizer.ggml.merges", [f"a {t}" for t in vocab], V.ARRAY, V.STRING),
    ]
    tensors = [(f"blk.{i}.ffn_up_exps.weight", (16, 8192, 5120), "q4_k") for i in range(528)]
    begin = time.process_time()
    (plan,) = lay_out(fields, tensors, path=Path("m.gguf"))
    assert time.process_time() - begin < 5  # measured 0.8 s; the bound is for slow machines
    assert len(plan.header) > 5_000_000


@pytest.mark.parametrize(
    ("fields", "tensors", "says"),
    [
        ([ARCHITECTURE, ARCHITECTURE], [], "general.architecture is given twice"),
        ([Field("split.no", 0, V.UINT16)], [], "split.no belongs to the layout"),
        ([Field("general.alignment", 64, V.UINT32)], [], "general.alignment is 64"),
        ([Field("a.b", 2**33, V.UINT32)], [], "the value of a.b cannot be stored as uint32"),
        ([Field("a.b", [], V.ARRAY, V.STRING)], [], "the value of a.b cannot be stored as array"),
        ([Field("a.b", "\ud800", V.STRING)], [], "the value of a.b cannot be stored as string"),
        ([Field("a.b", 3, V.STRING)], [], "the value of a.b cannot be stored as string: 3"),
        ([Field("ä", 3, V.UINT8)], [], "not a GGUF key"),
        ([], [("t", (32,), "f32"), ("t", (32,), "f32")], "two tensors are called t"),
        ([], [("t" * 64, (32,), "f32")], "not of 1 to 63 bytes"),
        ([], [("ü" * 32, (32,), "f32")], "not of 1 to 63 bytes"),
        ([], [("t", (1, 1, 1, 1, 32), "f32")], "1 to 4 dimensions"),
        ([], [("t", (0, 32), "f32")], "none of them 0"),
        ([], [("t", (2, 100), "q4_k")], "t: a row of 100 values is not a whole number of q4_k blocks"),
    ],
)
def test_refusals(fields: list[Field], tensors: list[tuple[str, tuple[int, ...], str]], says: str) -> None:
    with pytest.raises(PlanRefusedError) as caught:
        lay_out(fields, tensors, path=Path("m.gguf"))
    assert says in caught.value.what


def test_name_of_63_bytes_is_allowed() -> None:
    (plan,) = lay_out([ARCHITECTURE], [("t" * 63, (32,), "f32")], path=Path("m.gguf"))
    assert "t" * 63 in plan.offsets


def test_split_sizes() -> None:
    assert [parse_split_size(s) for s in ("5G", "500M", "100k", "7")] == [5 * 10**9, 5 * 10**8, 10**5, 7]
    for bad in ("", "G", "5T", "-1", "0", "5GB", "1.5G"):
        with pytest.raises(UsageError):
            parse_split_size(bad)
