from __future__ import annotations

import numpy as np
from tests.llama4.checkpoints import TINY

from quantkit.checkpoint import open_checkpoint
from quantkit.llama4.forward.buffers import Buffers, Scratch
from quantkit.llama4.forward.checkpoint_weights import CheckpointWeights

MB = 1 << 20


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_what_was_given_back_is_taken_again() -> None:
    buffers = Buffers()
    first, second = buffers.take(80 * MB), buffers.take(80 * MB)
    assert address(first) != address(second)
    places = {address(first), address(second)}
    buffers.give(first.reshape(80, MB))
    buffers.give(second[: 80 * MB].reshape(-1, 2))
    shorter, again = buffers.take(50 * MB), buffers.take(80 * MB)  # a little shorter will do
    assert (shorter.size, again.size) == (50 * MB, 80 * MB)
    assert {address(shorter), address(again)} == places


def test_buffers_that_do_not_fit_are_let_go() -> None:
    buffers = Buffers()
    for large in [buffers.take(160 * MB) for _ in range(3)]:
        buffers.give(large)
    assert buffers.free_bytes == 480 * MB
    small = buffers.take(1000)
    assert buffers.free_bytes == 480 * MB  # the C library's business
    buffers.give(small)
    assert buffers.free_bytes == 480 * MB
    assert buffers.take(80 * MB).base is None
    assert buffers.free_bytes == 0


def test_scratch_grows_and_is_used_again() -> None:
    scratch = Scratch()
    x = scratch.array("x", 3, 4)
    assert x.shape == (3, 4)
    assert x.flags.c_contiguous
    assert address(scratch.array("x", 2, 2)) == address(x)
    assert address(scratch.array("y", 3, 4)) != address(x)
    assert scratch.array("x", 100, 4).shape == (100, 4)


def test_one_buffer_takes_slab_after_slab() -> None:
    weights = CheckpointWeights(open_checkpoint(TINY))
    names = ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"]
    weights.matrices(names, expert=0)
    first = weights._buffer
    weights.matrices(names, expert=1)
    assert weights._buffer is first
    weights.close()
