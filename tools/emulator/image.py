"""The address space of an emulated process: a static ELF program, its stack, its heap, and identity page tables."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20
SIZE = 512 * MIB
PAGE_TABLES, LARGE_PAGE = 0x1000, 2 * MIB
SYSCALL_ENTRY = 0x8000  # holds `hlt`: a system call ends the emulation, and what runs it takes over
HEAP_LIMIT, STACK_TOP = 256 * MIB, SIZE - MIB
PT_LOAD = 1


class Image:
    """Memory from address 0 on, physical addresses being virtual ones.

    Args:
        program: statically linked, not position-independent x86-64 ELF.
        arguments: argv, the program's name first.
    """

    def __init__(self, program: Path, arguments: Sequence[str]) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.memory[SYSCALL_ENTRY] = 0xF4
        self._map_pages()
        self.entry, headers, self.break_start = self._load(program.read_bytes())
        self.break_end = self.break_start
        self._mapped_from = STACK_TOP - 16 * MIB
        self._free: dict[int, list[int]] = {}
        self.stack = self._push(arguments, headers)

    def put_word(self, address: int, value: int) -> None:
        """Stores 64 bits."""
        self.memory[address : address + 8] = struct.pack("<Q", value & (1 << 64) - 1)

    def move_break(self, address: int) -> int:
        """brk(2)."""
        if self.break_start <= address < HEAP_LIMIT:
            self.break_end = address
        return self.break_end

    def map(self, n_bytes: int) -> int:
        """mmap(2) of anonymous memory, zeroed."""
        n_bytes = -(-n_bytes // 4096) * 4096
        freed = self._free.get(n_bytes)
        if freed:
            address = freed.pop()
            self.memory[address : address + n_bytes] = bytes(n_bytes)
            return address
        self._mapped_from -= n_bytes
        if self._mapped_from < HEAP_LIMIT:
            raise MemoryError("the emulated program needs more memory than there is")
        return self._mapped_from

    def unmap(self, address: int, n_bytes: int) -> None:
        """munmap(2) of a whole mapping."""
        self._free.setdefault(-(-n_bytes // 4096) * 4096, []).append(address)

    def _map_pages(self) -> None:
        top, middle, bottom = (PAGE_TABLES + 0x1000 * level for level in range(3))
        present = 7  # and writable, and the user's
        self.put_word(top, middle | present)
        self.put_word(middle, bottom | present)
        for page in range(SIZE // LARGE_PAGE):
            self.put_word(bottom + 8 * page, page * LARGE_PAGE | 0x80 | present)

    def _load(self, elf: bytes) -> tuple[int, tuple[int, int, int], int]:
        if elf[:4] != b"\x7fELF" or struct.unpack_from("<HH", elf, 16) != (2, 62):
            raise ValueError("not a static x86-64 program: link with -static -no-pie")
        entry, table = struct.unpack_from("<QQ", elf, 24)
        entry_size, count = struct.unpack_from("<HH", elf, 54)
        end = table_address = 0
        for index in range(count):
            kind, _, offset, address, _, in_file, in_memory, _ = struct.unpack_from(
                "<IIQQQQQQ", elf, table + index * entry_size
            )
            if kind != PT_LOAD:
                continue
            self.memory[address : address + in_file] = elf[offset : offset + in_file]
            end = max(end, address + in_memory)
            if offset <= table < offset + in_file:
                table_address = address + table - offset
        return entry, (table_address, entry_size, count), (end + MIB) // MIB * MIB

    def _push(self, arguments: Sequence[str], headers: tuple[int, int, int]) -> int:
        """What a process finds on its stack: argc, argv, an empty environment, the auxiliary vector."""
        at = STACK_TOP
        places = []
        for content in [*(argument.encode() + b"\0" for argument in arguments), bytes(range(16))]:
            at -= len(content)
            self.memory[at : at + len(content)] = content
            places.append(at)
        *argv, random = places
        # program headers, their size and number, page size, entry, random bytes, not set-uid, end
        auxiliary = {3: headers[0], 4: headers[1], 5: headers[2], 6: 4096, 9: self.entry, 25: random, 23: 0, 0: 0}
        words = [len(argv), *argv, 0, 0, *(word for pair in auxiliary.items() for word in pair)]
        at = (at - 8 * len(words)) & ~15
        for index, word in enumerate(words):
            self.put_word(at + 8 * index, word)
        return at
