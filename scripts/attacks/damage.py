"""Damage to an unfinished trace: a function for each kind, of the folder of the trace, a folder outside it, and a generator."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from attacks.unfinished import N_SHARDS

Damage = Callable[[Path, Path, random.Random], None]


def _any_file(root: Path, rng: random.Random) -> Path | None:
    """Choose a file that a shard consists of; None where nothing is left."""
    files = [
        p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink() and p.name[:1] != "." and p.parent != root
    ]
    return rng.choice(files) if files else None


def _changed(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(root: Path, outside: Path, rng: random.Random) -> None:
        path = _any_file(root, rng)
        if path is not None:
            path.write_bytes(change(path.read_bytes(), rng))

    return damage


def _flipped(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\x00"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _delete(root: Path, outside: Path, rng: random.Random) -> None:
    path = _any_file(root, rng)
    if path is None:
        return
    if rng.random() < 0.2:
        shutil.rmtree(path.parent)
    else:
        path.unlink()


def _parts(root: Path) -> list[Path]:
    folder = root / "parts"
    return sorted(p for p in folder.glob("*.json") if p.is_file() and not p.is_symlink()) if folder.is_dir() else []


def _claim(root: Path, outside: Path, rng: random.Random) -> None:
    """Let a part claim something else than it has."""
    parts = _parts(root)
    if not parts:
        return
    path = rng.choice(parts)
    try:
        entry = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if not isinstance(entry, dict):
        return
    field = rng.choice(("n_documents", "n_tokens", "index", "files", "tables", "file"))
    if field in ("n_documents", "n_tokens", "index"):
        entry[field] = rng.choice(
            (int(entry.get(field) or 0) + rng.choice((-1, 1, 7)), -1, 0, 10**12, 10**30, 1.5, None, "x", True)
        )
    elif field in ("files", "tables"):
        named = list(entry.get(field) or ())
        entry[field] = rng.choice(
            (named[1:], named[::-1], named * 2, [*named, {"path": "/etc/passwd", "size": 1, "sha256": ""}], {})
        )
    else:
        named = [*entry.get("files", ()), *entry.get("tables", ())]
        if named and isinstance(named[0], dict):
            other = {
                "path": rng.choice(
                    ("../../x", "/etc/hostname", "trace.json", "routing/00001.safetensors", "x" * 300, "a\x00b", "")
                ),
                "size": rng.choice((-1, 0, 10**18)),
                "sha256": rng.choice(("", "0" * 64, "x")),
            }
            key = rng.choice(list(other))
            rng.choice(named)[key] = other[key]
    path.write_text(json.dumps(entry))


_FOREIGN = (
    b"[]",
    b"null",
    b"{}",
    b'"x"',
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"index": 0}',
    b"1e999",
    b"NaN",
    b'{"a": ' * 50_000,
    b" ",
)


def _foreign(root: Path, outside: Path, rng: random.Random) -> None:
    parts = _parts(root)
    if parts:
        rng.choice(parts).write_bytes(rng.choice(_FOREIGN))


def _swap(root: Path, outside: Path, rng: random.Random) -> None:
    """Exchange two shards: what they say, a table, an array, or everything, with or without new numbers."""
    first, second = sorted(rng.sample(range(N_SHARDS), 2))
    pairs = [(p, p.with_name(p.name.replace(f"{first:05d}", f"{second:05d}"))) for p in root.rglob(f"{first:05d}*")]
    if rng.random() < 0.5:
        pairs = rng.sample(pairs, min(1, len(pairs)))
    for one, other in pairs:
        if one.exists() and other.exists() and not one.is_symlink() and not other.is_symlink():
            aside = one.with_name("aside")
            one.rename(aside)
            other.rename(one)
            aside.rename(other)
    if rng.random() < 0.5:
        for path in _parts(root):
            numbered = path.read_bytes().replace(f"{first:05d}".encode(), b"#1#").replace(f"{second:05d}".encode(), b"#2#")
            numbered = numbered.replace(b"#1#", f"{second:05d}".encode()).replace(b"#2#", f"{first:05d}".encode())
            before, after = (b'"index": %d' % second, b'"index": %d' % first) if path.stem == f"{first:05d}" else (b"", b"")
            if path.stem == f"{second:05d}":
                before, after = b'"index": %d' % first, b'"index": %d' % second
            path.write_bytes(
                numbered.replace(before, after) if path.stem in (f"{first:05d}", f"{second:05d}") else path.read_bytes()
            )


def _link(root: Path, outside: Path, rng: random.Random) -> None:
    """Put a link, or a folder, where a file or folder of the trace is."""
    path = _any_file(root, rng)
    if path is None:
        return
    if rng.random() < 0.2:
        path.unlink()
        path.mkdir()
        return
    if rng.random() < 0.3:
        path = path.parent
        shutil.rmtree(path)
    else:
        path.unlink()
    relative = path.relative_to(root)
    path.symlink_to(
        rng.choice((outside / relative, outside / "nowhere", Path("/etc/hostname"), outside, root / "trace.json"))
    )


def _older(root: Path, outside: Path, rng: random.Random) -> None:
    """Make a part one of an earlier version, without checksums of its tables; then a table with other counts."""
    for path in _parts(root):
        try:
            entry = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entry.pop("tables", None)
            entry.pop("digest", None)
            path.write_text(json.dumps(entry))
    rng.choice((_claim, _swap, _delete))(root, outside, rng)


def _left_over(root: Path, outside: Path, rng: random.Random) -> None:
    """Leave what a killed process leaves: unfinished files, a shard without its entry; some of them links."""
    names = (
        "routing/00009.safetensors",
        "parts/00000.json.partial",
        "usage.parquet.partial",
        "usage.parquet",
        "routing/.tmpaB12cD",
    )
    path = root / rng.choice(names)
    if path.parent.is_dir() and not path.exists() and not path.is_symlink():
        if rng.random() < 0.3:
            path.symlink_to(outside / "trace.json")
        else:
            path.write_bytes(b"half of it")


DAMAGE: dict[str, Damage] = {
    "deleted": _delete,
    "emptied": _changed(lambda data, rng: b""),
    "a bit flipped": _changed(_flipped),
    "truncated": _changed(lambda data, rng: data[: rng.randrange(len(data) + 1)]),
    "lengthened": _changed(lambda data, rng: data + bytes([rng.randrange(256)])),
    "claims other counts or files": _claim,
    "foreign JSON": _foreign,
    "two shards exchanged": _swap,
    "links and folders": _link,
    "part of an earlier version, damaged": _older,
    "left behind by a killed process": _left_over,
}
