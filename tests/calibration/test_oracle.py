"""Statistics are those of llama.cpp's own graph for the same tokens, and its quantizer takes the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.llama4 import checkpoints
from tests.oracle import imatrix as oracle
from tests.oracle import llama

import quantkit
from quantkit.calibration import Collector, documents, token_source
from quantkit.checkpoint import open_checkpoint
from quantkit.gguf import read_imatrix
from quantkit.llama4.forward import Routing, Stream, open_weights
from quantkit.recipes import RECIPES

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"
TEXT = ROOT / "LICENSE"
CONTEXT, N_TOKENS = 256, 1536


class Margins(Collector):
    """Also counts, by layer and expert, tokens whose logits are so near a tie that rounding may send them elsewhere."""

    near = 1e-4

    def __init__(self, hp: Any) -> None:
        super().__init__(hp)
        self.undecided: dict[int, np.ndarray] = {}

    def routing(self, seen: Routing) -> None:
        n_used = seen.experts.shape[1]
        ordered = np.argsort(-seen.logits, axis=1)
        logits = np.take_along_axis(seen.logits, ordered, axis=1)
        tied = logits[:, n_used - 1] - logits[:, n_used] < self.near
        counts = self.undecided.setdefault(seen.layer, np.zeros(seen.logits.shape[1], int))
        for place in (n_used - 1, n_used):
            np.add.at(counts, ordered[tied, place], 1)


def compare(checkpoint: Path, folder: Path, chunks: np.ndarray) -> None:
    base = folder / "f32.gguf"
    quantkit.convert(checkpoint, base, ["f32"], threads=2, allow_mismatch=True)
    theirs = oracle.collect(base, chunks.astype(np.int32))
    weights = open_weights(checkpoint)
    margins = Margins(weights.hp)
    with Stream(weights, chunks, observer=margins, threads=2) as stream:
        stream.run()
    weights.close()
    ours = margins.imatrix(("text",), *chunks.shape).entries
    assert set(ours) == set(theirs)
    for name, entry in theirs.items():
        mine = ours[name]
        assert mine.sums.shape == entry.sums.shape, name
        undecided = np.zeros(len(entry.counts), int)
        if name.endswith("_exps.weight"):
            undecided = margins.undecided[int(name.split(".")[1])]
        assert (np.abs(mine.counts - entry.counts) <= undecided).all(), name
        same = undecided == 0
        assert same.sum() * 2 >= len(same), name
        np.testing.assert_allclose(mine.sums[same], entry.sums[same], rtol=1e-3, err_msg=name)


def tokens(n: int, context: int) -> np.ndarray:
    with open_checkpoint(TINY) as cp:
        return token_source(cp, documents([TEXT]), context=context).take(n // context)


def test_the_trained_checkpoint(tmp_path: Path) -> None:
    compare(TINY, tmp_path, tokens(N_TOKENS, CONTEXT))


@pytest.mark.parametrize(
    "shape",
    [{"experts": 8, "moe_step": 2}, {"experts": 6, "experts_used": 2}],
    ids=["dense-layers", "two-experts"],
)
def test_other_shapes(shape: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoints.build(
        tmp_path / "model", std=0.08, layers=4, hidden=96, head_dim=32, expert_width=64, dense_width=160, **shape
    )
    with open_checkpoint(folder) as cp:
        vocab_size = cp.config.get("text_config", cp.config)["vocab_size"]
    compare(folder, tmp_path, np.random.default_rng(0).integers(0, vocab_size, (6, 64)))


def test_its_quantizer_takes_the_file_and_so_does_convert(tmp_path: Path) -> None:
    stats, base = tmp_path / "stats.gguf", tmp_path / "bf16.gguf"
    quantkit.calibrate(TINY, stats, text=[TEXT], context=64, tokens=512, threads=2)
    quantkit.convert(TINY, base, ["bf16"], threads=2)
    loaded = oracle.load(stats)
    assert (loaded.datasets, loaded.n_chunks, loaded.chunk_size) == ([str(TEXT)], 8, 64)
    assert loaded.entries["blk.0.attn_q.weight"].counts.tolist() == [512]
    assert loaded.entries["blk.3.ffn_up_exps.weight"].counts.sum() == 512
    assert not {"output.weight", "token_embd.weight"} & set(loaded.entries)
    theirs = llama.quantize(
        base, tmp_path / "theirs.gguf", RECIPES["iq4_xs"].ftype, importance=oracle.importance(loaded.entries)
    )
    ours = tmp_path / "ours.gguf"
    quantkit.convert(TINY, ours, ["iq4_xs"], imatrix=stats, threads=2)
    assert ours.stat().st_size > 0.9 * theirs.stat().st_size
    assert read_imatrix(stats).importance("blk.0.ffn_down_exps.weight", 4, 256) is not None
