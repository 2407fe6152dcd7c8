"""Runs a static x86-64 Linux program on a processor that this machine need not have, one thread of it.

    python tools/emulator/run.py [--cpu sapphire_rapids] PROGRAM [ARGUMENT ...] < INPUT

The processor is that of Bochs, as the package bochscpu-python brings it. The program is linked with `-static -no-pie`;
it may read standard input, write standard output and error, and use memory; it has no files, threads or signals. The
exit status is the program's, or 132 when it meets an instruction that the processor lacks, or another fault.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image import PAGE_TABLES, SIZE, SYSCALL_ENTRY, Image

FAULTS = {6: "an instruction that this processor lacks", 13: "general protection", 14: "page fault"}
NO_SUCH_CALL = -38


@dataclass(frozen=True)
class Processor:
    """A model of Bochs, and which registers the operating system saves (XCR0; none before XSAVE)."""

    model: str
    xcr0: int


PROCESSORS = {
    "lynnfield": Processor("corei5_lynnfield_750", 0),  # SSE4.2
    "haswell": Processor("corei7_haswell_4770", 0x7),  # AVX2, FMA, F16C
    "skylake_x": Processor("corei7_skylake_x", 0xE7),  # AVX-512 F BW VL DQ
    "skylake_x_without_zmm": Processor("corei7_skylake_x", 0x7),  # under a system that does not save its registers
    "icelake": Processor("corei7_icelake_u", 0xE7),  # AVX512_VNNI
    "sapphire_rapids": Processor("sapphire_rapids", 0xE7),  # and AVX-VNNI
}


def load_bochs(processor: Processor) -> Any:
    """The package bochscpu, which will make this processor."""
    found = importlib.util.find_spec("bochscpu")
    if found is None or found.origin is None:
        raise SystemExit("emulator: install bochscpu-python (quantkit's extra `emulator`)")
    (library,) = Path(found.origin).parent.glob("_bochscpu*.so")
    name = f"create_{processor.model}_cpuid"
    os.environ["EMULATOR_LIBRARY"] = str(library)
    os.environ["EMULATOR_CPU"] = f"_Z{len(name)}{name}P8BX_CPU_C"
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.so"
        source = Path(__file__).with_name("shim.c")
        subprocess.run([os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)
    import bochscpu
    import bochscpu.cpu
    import bochscpu.memory

    return bochscpu


class Process:
    """A program on its way: memory and registers."""

    def __init__(self, bochs: Any, processor: Processor, image: Image) -> None:
        self.bochs, self.image = bochs, image
        self.session = bochs.Session()
        self.session.missing_page_handler = self._missing
        for address in range(0, SIZE, 4096):
            bochs.memory.page_insert(address, image.host_address + address)
        self.code, self.data = self._segment(0x33, 0x22FB), self._segment(0x2B, 0xCF3)
        self.session.cpu.state = self._first_state(processor)
        self.events: list[tuple[int, int] | None] = []  # faults (vector, error); None: a system call
        self.hook = bochs.Hook()
        self.hook.exception = self._fault
        self.hook.hlt = self._halt

    def run(self) -> int:
        """Until the program ends; returns its exit status."""
        while True:
            self.events.clear()
            self.session.run([self.hook])
            state = self.session.cpu.state
            event = self.events[0] if self.events else (-1, 0)
            if event is not None:
                self._explain(state, event[0])
                return 132
            number, arguments = state.rax, (state.rdi, state.rsi, state.rdx)
            if number in (60, 231):  # exit, exit_group
                return int(arguments[0] & 255)
            state.rax = self._call(state, number, *arguments) & (1 << 64) - 1
            # what `sysret` does
            state.rip, state.rflags, state.cs, state.ss = state.rcx, state.r11, self.code, self.data
            self.session.cpu.state = state

    def _call(self, state: Any, number: int, a: int, b: int, c: int) -> int:
        """System calls, as far as a C++ program on one thread makes them."""
        memory = self.image.memory
        match number:
            case 0:  # read
                content = os.read(a, c)
                memory[b : b + len(content)] = content
                return len(content)
            case 1:  # write
                return os.write(a, memory[b : b + c])
            case 20:  # writev
                parts = [struct.unpack_from("<QQ", memory, b + 16 * index) for index in range(c)]
                return sum(os.write(a, memory[at : at + n]) for at, n in parts if n)
            case 9:  # mmap
                return self.image.map(b)
            case 11:  # munmap
                self.image.unmap(a, b)
                return 0
            case 12:  # brk
                return self.image.move_break(a)
            case 158 if a == 0x1002:  # arch_prctl: where thread-local storage is
                state.fs = self._segment(0x2B, 0xCF3, b)
                return 0
            case 318:  # getrandom
                memory[a : a + b] = bytes(b)
                return b
            case 10 | 13 | 14 | 202 | 218 | 273 | 302:  # mprotect, signals, futex, thread id, robust list, limits
                return 0
            case _:
                return NO_SUCH_CALL

    def _segment(self, selector: int, attributes: int, base: int = 0) -> Any:
        segment = self.bochs.Segment()
        segment.present, segment.selector, segment.attr = True, selector, attributes
        segment.base, segment.limit = base, 0xFFFFFFFF
        return segment

    def _first_state(self, processor: Processor) -> Any:
        """64-bit user mode, as the kernel starts a process."""
        state = self.bochs.State()
        self.bochs.cpu.set_long_mode(state)
        state.cr0 = (state.cr0 | 1 << 1) & ~(1 << 2 | 1 << 18 | 1 << 3)  # the FPU is there; no alignment checks
        state.cr3 = PAGE_TABLES
        state.cr4 |= 1 << 9 | 1 << 10  # SSE
        state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
        if processor.xcr0:
            state.cr4 |= 1 << 18  # XSAVE
            state.xcr0 = processor.xcr0
        state.rip, state.rsp, state.rflags = self.image.entry, self.image.stack, 2
        state.cs = self.code
        state.ss = state.ds = state.es = state.fs = state.gs = self.data
        state.lstar, state.star, state.sfmask = SYSCALL_ENTRY, 0x23 << 48 | 0x10 << 32, 0x200
        return state

    def _fault(self, session: Any, cpu: int, vector: int, error: int) -> None:
        self.events.append((vector, error))
        session.stop()

    def _halt(self, session: Any, cpu: int) -> None:
        self.events.append(None)
        session.stop()

    def _missing(self, address: int) -> None:
        sys.stderr.write(f"emulator: the program reached for address {address:#x}\n")
        os._exit(132)

    def _explain(self, state: Any, vector: int) -> None:
        code = self.image.memory[state.rip : state.rip + 12].hex(" ") if state.rip < SIZE - 12 else ""
        what = FAULTS.get(vector, f"fault {vector}")
        sys.stderr.write(f"emulator: {what} at {state.rip:#x} ({code}), address {state.cr2:#x}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", choices=PROCESSORS, default="sapphire_rapids")
    parser.add_argument("program", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    processor = PROCESSORS[args.cpu]
    image = Image(args.program, [str(args.program), *args.arguments])
    status = Process(load_bochs(processor), processor, image).run()
    sys.stderr.flush()
    os._exit(status)  # the library's threads and its memory end with the process


if __name__ == "__main__":
    main()
