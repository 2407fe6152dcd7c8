from __future__ import annotations

import numpy as np

from quantkit.llama4.forward.buffers import Buffers, Scratch

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
