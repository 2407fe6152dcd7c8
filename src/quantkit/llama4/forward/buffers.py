"""Memory that is used again: a fresh page costs the system more time than filling it costs us."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from quantkit.llama4.forward.floats import Floats

Bytes = npt.NDArray[np.uint8]
_SMALL = 32 << 20  # below this the C library keeps what is given back


class Scratch:
    """Arrays of one thread by name; what an array held is gone when its name is asked for again."""

    def __init__(self) -> None:
        self._flat: dict[str, Floats] = {}

    def array(self, name: str, *shape: int) -> Floats:
        """float32 of any content, C-contiguous."""
        size = int(np.prod(shape))
        if name not in self._flat or self._flat[name].size < size:
            self._flat.pop(name, None)  # before the larger one is made
            self._flat[name] = np.empty(size, np.float32)
        return self._flat[name][:size].reshape(shape)


class Buffers:
    """Bytes of weights, given back when they have been used. From any thread."""

    def __init__(self) -> None:
        self._free: list[Bytes] = []
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Of what was given back and not taken again."""
        return sum(buffer.nbytes for buffer in self._free)

    def take(self, n_bytes: int) -> Bytes:
        """uint8 (n_bytes,) of any content, contiguous; part of a buffer that is little larger, or new."""
        if n_bytes < _SMALL:
            return np.empty(n_bytes, np.uint8)
        with self._lock:
            # a query matrix goes into an expert's buffer; an expert in one of a dense layer would waste half of it
            fitting = [buffer for buffer in self._free if n_bytes <= buffer.size <= n_bytes * 5 // 3]
            if fitting:
                best = min(fitting, key=lambda buffer: buffer.size)
                self._free = [buffer for buffer in self._free if buffer is not best]
                return best[:n_bytes]
            self._free.clear()  # another kind of layer begins, and memory would hold both kinds
        return np.empty(n_bytes, np.uint8)

    def give(self, array: Bytes) -> None:
        """Take back what `take` returned, in any shape; nobody may look at it any more."""
        owner = array if array.base is None else array.base
        if isinstance(owner, np.ndarray) and owner.nbytes >= _SMALL:
            with self._lock:
                self._free.append(owner)
