"""Damage to the header and the values of safetensors files."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from attacks.mutate_values import DEEP, Change, replaced

_TYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "U32",
    "U64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "X",
    "",
)


def _with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    given = change(header)
    text = (given if isinstance(given, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _entry(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    return header[rng.choice([name for name in header if name != "__metadata__"])]


def _dtype(rng: random.Random, data: bytes) -> bytes:
    return _with_header(data, lambda header: _entry(rng, header).update(dtype=rng.choice(_TYPES)) and None)


def _shape(rng: random.Random, data: bytes) -> bytes:
    def change(header: dict[str, Any]) -> None:
        entry = _entry(rng, header)
        shape = entry["shape"]
        kind = rng.randrange(6)
        if kind == 0 and shape:
            shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2**31, 2**62, 2**64, -1, 1.5, "3", None))
        elif kind == 1:
            rng.shuffle(shape)
        elif kind == 2:  # the same bytes in another shape
            total = 1
            for size in shape:
                total *= size
            entry["shape"] = rng.choice(([total], [1, total], [total, 1, 1], [1, 1, 1, 1, total], [0, *shape], []))
        elif kind == 3 and shape and shape[-1] % 2 == 0:
            shape[-1] //= 2
            shape[0] *= 2
        elif kind == 4:
            entry["shape"] = [0] * len(shape)
            entry["data_offsets"] = [entry["data_offsets"][0]] * 2
        else:
            shape.append(rng.choice((0, 1, 2)))

    return _with_header(data, change)


def _offsets(rng: random.Random, data: bytes) -> bytes:
    def change(header: dict[str, Any]) -> None:
        offsets = _entry(rng, header)["data_offsets"]
        offsets[rng.randrange(2)] = rng.choice(
            (0, -1, 2**31, 2**63, 2**64, len(data), len(data) * 2, offsets[0], offsets[1], "0", None, 1.5)
        )

    return _with_header(data, change)


def _names(rng: random.Random, data: bytes) -> bytes:
    """Rename, remove or repeat a tensor, or change the metadata."""

    def change(header: dict[str, Any]) -> None:
        name = rng.choice(list(header))
        kind = rng.randrange(4)
        if kind == 0:
            header[rng.choice((f"{name}x", "", "__metadata__", "a\nb", "\ud800"))] = header.pop(name)
        elif kind == 1:
            del header[name]
        elif kind == 2:
            header["again"] = dict(header[name])
        else:
            header["__metadata__"] = rng.choice(
                ({}, {"a": 1}, [], "x", None, {"identity": "x", "done": "-1", "progress": "[]"})
            )

    return _with_header(data, change)


def _header(rng: random.Random, data: bytes) -> bytes:
    """Write another header: any JSON value replaced, or one that is nested deep."""
    if rng.random() < 0.2:
        return _with_header(data, lambda _: rng.choice(("[" * DEEP, "{}", "[]", "null", '{"a":' * DEEP, "")))
    return _with_header(data, lambda header: json.dumps(replaced(rng, header)))


def _size(rng: random.Random, data: bytes) -> bytes:
    return struct.pack("<Q", rng.choice((0, 1, 8, len(data), 2**31, 2**40, 2**63, 2**64 - 1, 100_000_001))) + data[8:]


def _numbers(rng: random.Random, data: bytes) -> bytes:
    """Overwrite values: ids past the end, NaN, infinite and negative numbers."""
    size = struct.unpack("<Q", data[:8])[0]
    out = bytearray(data)
    for _ in range(rng.choice((1, 8, 64))):
        at = 8 + size + rng.randrange(max(1, len(data) - 8 - size))
        odd = rng.choice(
            (b"\xff\x7f", b"\x00\x7c", b"\x00\xfc", b"\xff\xff", b"\x00\x00", b"\x00\x80", b"\xff", b"\x7f\xff\xff\x7f")
        )
        out[at : at + len(odd)] = odd
    return bytes(out[: len(data)])


SAFETENSORS: dict[str, Change] = {
    "tensor type changed": _dtype,
    "tensor shape changed": _shape,
    "tensor offsets changed": _offsets,
    "tensor names changed": _names,
    "header replaced": _header,
    "header size changed": _size,
    "tensor values changed": _numbers,
    "more tensor values changed": _numbers,
}
