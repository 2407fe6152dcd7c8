"""What was written, read back before it gets its name: headers only, so it costs no time."""

from __future__ import annotations

from quantkit.convert.part import part_path
from quantkit.convert.work import OutputWork
from quantkit.errors import CheckpointError, VerificationError
from quantkit.gguf import FilePlan
from quantkit.gguf.header import read_header


def verify(output: OutputWork) -> None:
    """Read the header of each OUT.part with the reader, and compare tensors, places and sizes with the plan.

    Raises:
        VerificationError: names file and tensor. OUT.part and its journal stay.
    """
    shapes = {tensor.name: (tuple(tensor.shape), format) for tensor, format in output.tensors}
    for file in output.files:
        _verify_file(file, shapes)


def _verify_file(file: FilePlan, shapes: dict[str, tuple[tuple[int, ...], str]]) -> None:
    part = part_path(file.path)
    try:
        n_bytes = part.stat().st_size
        if n_bytes != file.n_bytes:
            raise _failure(f"{part} has {n_bytes:,} bytes, and {file.n_bytes:,} were written")
        header = read_header(part)
        with part.open("rb") as opened:
            same = opened.read(len(file.header)) == file.header
    except (OSError, CheckpointError) as error:
        raise _failure(f"{part} does not read back: {error}") from error
    read = {tensor.name: (tensor.offset_bytes, tensor.shape, tensor.type) for tensor in header.tensors}
    for name, offset in file.offsets.items():
        wanted = (offset, *shapes[name])
        if (found := read.pop(name, None)) != wanted:
            raise _failure(f"{part}: {name} reads back as {found}, and {wanted} was written (offset, shape, type)")
    if read or not same:
        raise _failure(f"{part}: the header reads back otherwise than it was written")


def _failure(what: str) -> VerificationError:
    return VerificationError(
        what,
        hint="Something else wrote to the file, or the disk or memory is faulty: delete it and its journal, check the "
        "disk, and run the same command again.",
    )
