"""An imatrix on its way to the encoder: each expert's own columns, gaps filled, what is missing or wrong refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.convert.source import text_tensors
from tests.gguf.imatrix_file import write_imatrix_dat, write_imatrix_gguf

from quantkit import kernels
from quantkit.convert import convert, plan
from quantkit.convert.weighting import weighting
from quantkit.errors import CheckpointError, PlanRefusedError
from quantkit.gguf import shrink

Entries = dict[str, tuple[np.ndarray, np.ndarray]]
NOT_COLLECTED = ("token_embd.weight", "output.weight")


def collected(checkpoint: Path) -> Entries:
    """Random statistics of every matrix that a run would collect; each third expert saw no token."""
    rng = np.random.default_rng(3)
    entries = {}
    for name, values in text_tensors(checkpoint).items():
        if values.ndim < 2 or name in NOT_COLLECTED:
            continue
        counts = rng.integers(600, 2000, values.shape[0] if values.ndim == 3 else 1).astype(np.float64)
        counts[2::3] = 0
        entries[name] = (rng.gamma(0.3, 1.0, (counts.size, values.shape[-1])) * counts[:, None], counts)
    return entries


@pytest.mark.parametrize("write", [write_imatrix_gguf, write_imatrix_dat])
def test_each_expert_is_encoded_with_its_own_columns(tiny: Path, tmp_path: Path, write: object) -> None:
    entries = collected(tiny)
    path = write(tmp_path / "stats", entries)  # type: ignore[operator]
    convert(tiny, tmp_path / "out.gguf", "q4_0", imatrix=path, threads=2)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    read = {tensor.name: tensor for tensor in reader.tensors}
    weighted = 0
    for name, values in text_tensors(tiny).items():
        type_name = read[name].tensor_type.name.lower()
        if type_name == "f32":
            continue
        importance = None
        if name in entries:
            sums, counts = entries[name]
            if write is write_imatrix_dat:  # that format holds means in float32, times the number of chunks
                n_calls = np.float32(-(-counts.max() // 512))
                rounded = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32) * n_calls
                means = rounded.astype(np.float64) / n_calls
                means[counts == 0] = means[counts > 0].mean(axis=0) if (counts > 0).any() else 1
            elif counts.size > 1:
                means = shrink(sums.astype(np.float32), counts).means
            else:
                means = sums.astype(np.float32).astype(np.float64) / counts[:, None]
            importance = means.astype(np.float32).reshape(*values.shape[:-2], -1)
            weighted += 1
        packed = kernels.quantize(
            np.ascontiguousarray(values),
            type_name,
            importance=importance,
            weighting=weighting(type_name),
        )
        assert np.array_equal(read[name].data.reshape(-1), packed.reshape(-1)), name
    assert weighted == sum("ffn_gate_inp" not in name for name in entries)
    assert reader.fields["quantize.imatrix.file"].contents() == "stats"
    assert reader.fields["quantize.imatrix.dataset"].contents() == "wiki.txt"
    assert reader.fields["quantize.imatrix.chunks_count"].contents() == 7
    assert reader.fields["quantize.imatrix.entries_count"].contents() == len(entries)


def test_missing_entries_are_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    entries = collected(tiny)
    del entries["blk.1.attn_v.weight"]
    sums, _ = entries["blk.2.ffn_up_exps.weight"]
    entries["blk.2.ffn_up_exps.weight"] = (sums, np.zeros(sums.shape[0]))  # no expert saw anything
    path = write_imatrix_gguf(tmp_path / "stats", entries)
    with pytest.raises(PlanRefusedError, match=r"no data for 2 .*blk\.1\.attn_v\.weight, blk\.2\.ffn_up_exps\.weight"):
        plan(tiny, types="q4_k_m", imatrix=path)
    tensors = plan(tiny, types="q4_k_m", imatrix=path, allow_missing_imatrix=True).outputs[0].tensors
    missing = {tensor.name for tensor in tensors if tensor.importance == "missing"}
    assert missing - set(NOT_COLLECTED) == {"blk.1.attn_v.weight", "blk.2.ffn_up_exps.weight"}


def test_another_models_entry_is_refused_even_then(tiny: Path, tmp_path: Path) -> None:
    entries = collected(tiny)
    entries["blk.1.attn_v.weight"] = (np.ones((1, 512)), np.ones(1))
    path = write_imatrix_gguf(tmp_path / "stats", entries)
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_v\.weight has 512 values .* 256 input columns"):
        plan(tiny, types="q4_k_m", imatrix=path, allow_missing_imatrix=True)


def test_q8_0_is_the_same_with_an_imatrix(tiny: Path, tmp_path: Path) -> None:
    stats = write_imatrix_gguf(tmp_path / "stats", collected(tiny))
    convert(tiny, tmp_path / "with.gguf", "q8_0", imatrix=stats, threads=2)
    convert(tiny, tmp_path / "without.gguf", "q8_0", threads=2)
    with_it, without = (gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors for name in ("with", "without"))
    for a, b in zip(with_it, without, strict=True):
        assert a.name == b.name
        assert np.array_equal(a.data, b.data), a.name
