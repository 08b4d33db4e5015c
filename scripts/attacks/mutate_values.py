"""Damage to values: JSON, JSON Lines, YAML, CSV, and the header of safetensors."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Change = Callable[[random.Random, bytes], bytes]
#: Stands in a text for what `json.dumps` cannot write.
_MARK = "\x01mark\x01"
_DEEP = 100_000
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 10**9, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, 1e308, -0.0, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "0", "1e9", "nan", "a\nb", "\x1b[31m", "\u202e", "\x00", "\ud800",
    "é" * 40, "../../../etc/hostname", "/etc/hostname", "C:\\x", "a/b", ".", [], {}, [[]], [None], {"": 0}, {"a": {"b": {}}},
    [0] * 1000,
)  # fmt: skip


def _value(rng: random.Random) -> Any:
    return rng.choice(_VALUES) if rng.random() < 0.97 else "x" * 2_000_000


def _places(value: Any) -> list[tuple[Any, Any]]:
    """All places of a value that can be replaced: containers and keys, at most some thousands."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo and len(found) < 5000:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            todo.append(one[key])
    return found


def _replaced(rng: random.Random, value: Any) -> Any:
    places = _places(value)
    if not places or rng.random() < 0.02:
        return _value(rng)
    inside, key = rng.choice(places)
    old = inside[key]
    if isinstance(old, (int, float)) and not isinstance(old, bool) and rng.random() < 0.4:
        inside[key] = rng.choice((old + 1, old - 1, -old, old * 2, float(old), str(old), old + 2**32))
    else:
        inside[key] = _value(rng)
    return value


def _reshaped(rng: random.Random, value: Any) -> Any:
    """Remove, rename, add or repeat an entry, or swap two values."""
    places = _places(value)
    if not places:
        return value
    inside, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice((f"{key}x", "", str(key).upper(), "__proto__", "x" * 300, "\ud800", "a\nb"))] = inside.pop(key)
    elif kind == 2 and isinstance(inside, list):
        inside.insert(rng.randrange(len(inside) + 1), inside[key])
    elif kind == 3:
        inside[key] = [inside[key]]
    else:
        other, at = rng.choice(places)
        inside[key], other[at] = other[at], inside[key]
    return value


def _dumped(value: Any) -> str:
    return json.dumps(value, indent=1)


def _json_replaced(rng: random.Random, data: bytes) -> bytes:
    return _dumped(_replaced(rng, json.loads(data))).encode()


def _json_reshaped(rng: random.Random, data: bytes) -> bytes:
    return _dumped(_reshaped(rng, json.loads(data))).encode()


def _marked(rng: random.Random, value: Any) -> Any:
    places = _places(value)
    if not places:
        return _MARK
    inside, key = rng.choice(places)
    inside[key] = _MARK
    return value


def _json_deep(rng: random.Random, data: bytes) -> bytes:
    """Nest 100,000 lists or mappings at some place, closed or not."""
    text = _dumped(_marked(rng, json.loads(data)))
    deep = rng.choice(("[" * _DEEP + "]" * _DEEP, "[" * _DEEP, '{"a":' * _DEEP + "0" + "}" * _DEEP, "[" * 900 + "]" * 900))
    return text.replace(json.dumps(_MARK), deep).encode()


def _json_odd(rng: random.Random, data: bytes) -> bytes:
    """Write what JSON has no value for: bytes that are no UTF-8, an integer of 5,000 digits, a key twice."""
    value = json.loads(data)
    if isinstance(value, dict) and value and rng.random() < 0.3:
        key = rng.choice(list(value))
        return ("{" + f"{json.dumps(key)}: {json.dumps(_value(rng))}, " + json.dumps(value)[1:]).encode()
    text = _dumped(_marked(rng, value)).encode()
    odd = rng.choice(
        (b'"\xff\xfe"', b'"\xc3"', b"9" * 5000, b"1e999", b'"\x00"', b"'x'", b"", b"//", b"\xef\xbb\xbf1", b"-")
    )
    return text.replace(json.dumps(_MARK).encode(), odd)


JSON: dict[str, Change] = {
    "JSON value replaced": _json_replaced,
    "JSON reshaped": _json_reshaped,
    "JSON value odd": _json_odd,
    "JSON value again": _json_replaced,
    "JSON nested deep": _json_deep,
}


def _by_line(change: Change) -> Change:
    def changed(rng: random.Random, data: bytes) -> bytes:
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = change(rng, lines[at]).replace(b"\n", b" ")
        return b"\n".join(lines) + b"\n"

    return changed


def _lines(rng: random.Random, data: bytes) -> bytes:
    """Remove, repeat, swap or empty lines."""
    lines = data.splitlines()
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = b""
    return b"\n".join(lines) + b"\n"


JSON_LINES: dict[str, Change] = {name: _by_line(change) for name, change in JSON.items()} | {"lines moved": _lines}


def _yaml(change: Callable[[random.Random, Any], Any]) -> Change:
    def changed(rng: random.Random, data: bytes) -> bytes:
        import yaml

        value = change(rng, yaml.safe_load(data))
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")

    return changed


def _yaml_odd(rng: random.Random, data: bytes) -> bytes:
    """Tags, dates, aliases that double forty times, deep nesting, keys twice."""
    import yaml

    doubled = "[&a0 [x, x]" + "".join(f", &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)) + "]"
    odd = rng.choice(
        (doubled, "!!python/object/apply:os.system ['true']", "2020-01-01", "!!binary x", "&a [*a]", "[" * 1000,
         "[" * 900 + "]" * 900,
         "{a: 1, a: 2}", "{[1]: 2}", "{{}: 1}", "!!set {a}", "*none", "0o9", ".nan", "0x7fffffffffffffffff", "9" * 5000, "? a",
         "@",
         "2020-99-99", "!!int x", "!!float x", "!!timestamp x", "!!omap [a]", "190:20:30", "<<: 1", "{<<: [1]}", "%"),
    )  # fmt: skip
    text = yaml.safe_dump(_marked(rng, yaml.safe_load(data)), sort_keys=False)
    written = yaml.safe_dump(_MARK).strip().removesuffix("...").strip()
    return text.replace(written, odd).encode()


YAML: dict[str, Change] = {
    "YAML value replaced": _yaml(_replaced),
    "YAML reshaped": _yaml(_reshaped),
    "YAML value odd": _yaml_odd,
}


def _cell(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    cells = lines[at].split(b",")
    odd = (
        b"",
        b'"',
        b'""',
        b"\x00",
        b"\xff",
        b"nan",
        b"-1",
        b"1e9",
        b"9" * 5000,
        b"=1+1",
        b"a\rb",
        b'"a\nb"',
        b"x" * 1_000_000,
    )
    cells[rng.randrange(len(cells))] = rng.choice(odd)
    lines[at] = b",".join(cells)
    return b"\n".join(lines) + b"\n"


def _columns(rng: random.Random, data: bytes) -> bytes:
    lines = [line.split(b",") for line in data.splitlines()]
    at, kind = rng.randrange(len(lines[0])), rng.randrange(4)
    chosen = lines if rng.random() < 0.5 else lines[:1]
    for cells in chosen:
        if kind == 0:
            cells[at : at + 1] = []
        elif kind == 1:
            cells.insert(at, cells[min(at, len(cells) - 1)] if cells else b"")
        elif kind == 2:
            cells[at : at + 1] = [b"other"]
        else:
            cells.append(b"more")
    return b"\n".join(b",".join(cells) for cells in lines) + b"\n"


CSV: dict[str, Change] = {"CSV cell replaced": _cell, "CSV columns changed": _columns, "lines moved": _lines}

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
        return _with_header(data, lambda _: rng.choice(("[" * _DEEP, "{}", "[]", "null", '{"a":' * _DEEP, "")))
    return _with_header(data, lambda header: json.dumps(_replaced(rng, header)))


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
