"""Sizes that trade memory against calls and syncs. No byte of any output depends on them."""

from __future__ import annotations

from dataclasses import dataclass

MiB = 1 << 20


@dataclass(frozen=True)
class Tuning:
    """Buffer sizes and sync intervals of the walk.

    Args:
        slab_bytes: largest slab of a matrix that can be cut by rows (a fused expert is never cut: 168 MB for Scout and
            Maverick alike), None for the family's default.
        slab_buffers: slabs in memory: one is encoded while the next is read.
        chunk_bytes: encoded rows handed to the writers at a time.
        chunk_buffers: such pieces in memory.
        writers: threads that write. Two were slower: they wait for each other at the file's lock.
        sync_bytes, sync_seconds: the disk is synced, and the journal brought forward, after so much or so long.
    """

    slab_bytes: int | None = None
    slab_buffers: int = 2
    chunk_bytes: int = 4 * MiB
    chunk_buffers: int = 8
    writers: int = 1
    sync_bytes: int = 128 * MiB
    sync_seconds: float = 5.0
