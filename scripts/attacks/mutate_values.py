"""Damage to values: JSON, JSON Lines, YAML, CSV."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Change = Callable[[random.Random, bytes], bytes]
#: Stands in a text for what `json.dumps` cannot write.
_MARK = "\x01mark\x01"
DEEP = 100_000
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


def replaced(rng: random.Random, value: Any) -> Any:
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
    return _dumped(replaced(rng, json.loads(data))).encode()


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
    deep = rng.choice(("[" * DEEP + "]" * DEEP, "[" * DEEP, '{"a":' * DEEP + "0" + "}" * DEEP, "[" * 900 + "]" * 900))
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
    "YAML value replaced": _yaml(replaced),
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
