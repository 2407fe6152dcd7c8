"""Safetensors files whose header the format forbids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.checkpoint.malformed.kind import SHARDS, Draft, Kind

FILE = SHARDS[1]
TENSOR = "language_model.model.layers.1.feed_forward.router.weight"  # [4, 256] BF16
_LENGTH = 4 * 256 * 2


def kinds() -> Iterator[Kind]:
    yield from _lengths()
    yield from _texts()
    yield from _fields()
    yield from _covers()


def _kind(name: str, match: str, spoil: Callable[[Draft], Any]) -> Kind:
    return Kind(f"header-{name}", "open", "CheckpointError", f"{re.escape(FILE)}: .*{match}", spoil)


def _bytes(name: str, match: str, change: Callable[[bytes], bytes]) -> Kind:
    return _kind(name, match, lambda draft: draft.write(FILE, change(draft.read(FILE))))


def _text(name: str, match: str, change: Callable[[bytes], bytes]) -> Kind:
    return _kind(name, match, lambda draft: draft.raw_header(FILE, change(draft.header_text(FILE))))


def _field(name: str, match: str, **values: Any) -> Kind:
    """`TENSOR` with other values; None takes a field away."""

    def change(header: dict[str, Any]) -> None:
        header[TENSOR].update(values)
        for key in [key for key, value in values.items() if value is None]:
            del header[TENSOR][key]

    return _kind(name, f"{re.escape(TENSOR)}.*{match}", lambda draft: draft.header(FILE, change))


def _lengths() -> Iterator[Kind]:
    yield _bytes("file-empty", "truncated: 0 bytes", lambda data: b"")
    yield _bytes("file-of-7-bytes", "truncated: 7 bytes", lambda data: data[:7])
    yield _bytes("length-zero", "does not begin with", lambda data: bytes(8) + data[8:])
    yield _bytes("length-beyond-file", "truncated: the header says", lambda data: _length(len(data)) + data[8:])
    yield _bytes("length-above-limit", "above the format's limit", lambda data: _length(100_000_001) + data[8:])
    yield _bytes("length-of-all-ones", "above the format's limit", lambda data: b"\xff" * 8 + data[8:])
    yield _bytes("length-big-endian", "above the format's limit", lambda data: data[:8][::-1] + data[8:])
    yield _bytes("length-too-short", "not valid JSON", lambda data: _length(500) + data[8:])
    yield _bytes("cut-within", "truncated: the header says", lambda data: data[:300])


def _length(n_bytes: int) -> bytes:
    return n_bytes.to_bytes(8, "little")


def _texts() -> Iterator[Kind]:
    yield _text("not-json", "not valid JSON", lambda text: b"{" + b"x" * 200)
    yield _text("not-utf8", "not UTF-8 at byte 5", lambda text: text[:5] + b"\xff" + text[6:])
    yield _text("begins-with-space", "does not begin with", lambda text: b" " + text)
    yield _text("is-a-list", "does not begin with", lambda text: b"[" + text + b"]")
    yield _text("trailing-comma", "not valid JSON", lambda text: text.rstrip()[:-1] + b",}")
    yield _text("trailing-nul", "not valid JSON: Extra data", lambda text: text + b"\0")
    yield _text(
        "nested-too-deeply", "nested too deeply", lambda text: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    )
    yield _text("nan", "NaN is not a number", lambda text: _insert(text, b'"x": NaN,'))
    yield _text("lone-surrogate", "surrogate", lambda text: _insert(text, b'"\\udc00": {},'))
    yield _text("tensor-twice", "is given twice", lambda text: _insert(text, b'"%s": {},' % TENSOR.encode()))
    yield _text(
        "field-twice", "'dtype' is given twice", lambda text: text.replace(b'"dtype"', b'"dtype":"F16","dtype"', 1)
    )
    yield _text("metadata-of-numbers", "__metadata__", lambda text: text.replace(b'"pt"', b"1", 1))


def _insert(text: bytes, member: bytes) -> bytes:
    return b"{" + member + text[1:]


def _fields() -> Iterator[Kind]:
    yield _field("dtype-unknown", "unknown dtype 'BF17'", dtype="BF17")
    yield _field("dtype-in-lower-case", "unknown dtype 'bf16'", dtype="bf16")
    yield _field("dtype-missing", "must have dtype, shape and data_offsets", dtype=None)
    yield _field("dtype-number", "unknown dtype 16", dtype=16)
    yield _field("shape-missing", "must have dtype, shape and data_offsets", shape=None)
    yield _field("shape-fraction", "not a list of sizes", shape=[4.0, 256])
    yield _field("shape-text", "not a list of sizes", shape="4x256")
    yield _field("shape-overflows", "overflows 64 bits", shape=[2**40, 2**40])
    yield _field("shape-too-large", f"takes {2 * _LENGTH} bytes, its data_offsets span {_LENGTH}", shape=[8, 256])
    yield _field("shape-too-small", f"takes 2 bytes, its data_offsets span {_LENGTH}", shape=[])
    yield _field("shape-in-half-bytes", "does not fill whole bytes", dtype="F4", shape=[3])
    yield _field("offsets-missing", "must have dtype, shape and data_offsets", data_offsets=None)
    yield _field("offsets-three", r"are not \[begin, end\]", data_offsets=[0, 2048, 4096])
    yield _field("offsets-reversed", "begin at 4096 and end before", data_offsets=[4096, 2048])
    yield _field("field-unknown", "nothing else", strides=[256, 1])
    yield _text(
        "shape-negative",
        "-4 is negative",
        lambda text: text.replace(b"[4, 256]", b"[-4, 256]").replace(b"[4,256]", b"[-4,256]"),
    )
    yield _text(
        "shape-above-64-bits", "above 2", lambda text: re.sub(rb"\[4, ?256\]", b"[4, %d]" % 2**64, text, count=1)
    )
    yield _kind(
        "tensor-is-a-number", "must have dtype", lambda draft: draft.header(FILE, lambda header: header.update(x=3))
    )


def _covers() -> Iterator[Kind]:
    yield _kind("offsets-overlap", "overlaps", lambda draft: draft.header(FILE, lambda header: _shift(header, -2)))
    yield _kind(
        "offsets-hole", "hole of 2 bytes before", lambda draft: draft.header(FILE, lambda header: _shift(header, 2))
    )
    yield _kind("hole-at-start", "hole of", lambda draft: draft.header(FILE, _drop_first))
    yield _bytes("file-short-of-a-byte", "truncated: 1 bytes are missing", lambda data: data[:-1])
    yield _bytes("file-halved", "truncated: .* bytes are missing", lambda data: data[: len(data) // 2])
    yield _bytes("file-with-a-byte-more", "1 bytes lie behind the last tensor", lambda data: data + b"\0")
    yield _bytes("file-twice", "bytes lie behind the last tensor", lambda data: data + data)


def _shift(header: dict[str, Any], by: int) -> None:
    begin, end = header[TENSOR]["data_offsets"]
    header[TENSOR]["data_offsets"] = [begin + by, end + by]


def _drop_first(header: dict[str, Any]) -> None:
    del header[next(name for name, info in header.items() if "data_offsets" in info and info["data_offsets"][0] == 0)]
