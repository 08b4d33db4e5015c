"""Damage to the files of a folder, by a seed: bytes, whole files, and the values inside JSON, YAML, CSV, Parquet and safetensors.

`mutate` changes one to three things and says what. The same generator gives the same damage.
"""

from __future__ import annotations

import gzip
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from attacks.mutate_tables import PARQUET
from attacks.mutate_tensors import SAFETENSORS
from attacks.mutate_values import CSV, JSON, JSON_LINES, YAML

Change = Callable[[random.Random, bytes], bytes]
_NUMBERS = (0, 1, -1, 127, 255, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63))


def mutate(rng: random.Random, folder: Path, names: Sequence[str]) -> str:
    """Damage some files of a folder in place.

    Parameters
    ----------
    rng : random.Random
    folder : Path
    names : sequence of str
        Files that may be damaged, relative to the folder.

    Returns
    -------
    str
        What was done, one entry a change.
    """
    done = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        name = rng.choice(names)
        path = folder / name
        if path.is_symlink() or not path.is_file() or rng.random() < 0.08:
            kind = rng.choice(list(_FILES))
            _FILES[kind](rng, folder, path, [folder / other for other in names])
        else:
            kind = _inside(rng, path)
        done.append(f"{kind} in {name}")
    return "; ".join(done)


def _inside(rng: random.Random, path: Path) -> str:
    """Damage what is in a file: half of the time by its structure, where that is known and still there."""
    data = path.read_bytes()
    packed = data[:2] == b"\x1f\x8b"
    ending = Path(path.stem).suffix if packed else path.suffix
    known = _STRUCTURES.get(ending.lower(), {})
    if packed and rng.random() < 0.3:
        kind = rng.choice(list(_GZIP))
        path.write_bytes(_GZIP[kind](rng, data))
        return kind
    if known and rng.random() < 0.65:
        kind = rng.choice(list(known))
        try:
            plain = gzip.decompress(data) if packed else data
            changed = known[kind](rng, plain)
        except Exception:  # an earlier change has broken the structure: bytes are damaged instead
            pass
        else:
            path.write_bytes(gzip.compress(changed, 1) if packed else changed)
            return kind
    kind = rng.choice(list(_BYTES))
    path.write_bytes(_BYTES[kind](rng, data))
    return kind


def _flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 4, 16, 256, 4096)))


def _run(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    fill = rng.choice((b"\x00", b"\xff", None))
    return data[:begin] + (rng.randbytes(end - begin) if fill is None else fill * (end - begin)) + data[end:]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[
        : rng.choice((0, 1, 8, len(data) // 2, max(0, len(data) - 1), max(0, len(data) - 8), rng.randrange(len(data) + 1)))
    ]


def _insert(rng: random.Random, data: bytes) -> bytes:
    begin, _ = _span(rng, data)
    return data[:begin] + rng.randbytes(rng.choice((1, 4, 64, 1024))) + data[begin:]


def _delete(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + data[end:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:end] + data[begin:end] * rng.choice((1, 2, 100)) + data[end:]


def _integer(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    value = (rng.choice(_NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "little", "big")))
    at = rng.choice((0, max(0, len(data) - 8), rng.randrange(len(data) + 1)))
    return data[:at] + value + data[at + size :]


def _append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\x00", b"\n", b"\xff\xfe", b"}", data, rng.randbytes(64)))


_BYTES: dict[str, Change] = {
    "bits flipped": _flip,
    "bytes overwritten": _run,
    "truncated": _truncate,
    "bytes inserted": _insert,
    "bytes deleted": _delete,
    "chunk repeated": _repeat,
    "integer overwritten": _integer,
    "appended": _append,
}


def _bomb(_rng: random.Random, _data: bytes) -> bytes:
    """1.5 GB of one line, as 24 members of a gzip file of some 1.5 MB."""
    return gzip.compress(b"[" * 1024 + b"0" * (2**26 - 1024), 1) + gzip.compress(b"0" * 2**26, 1) * 23


_GZIP: dict[str, Change] = {
    "gzip damaged": _flip,
    "gzip truncated": _truncate,
    "gzip checksum wrong": lambda rng, data: data[:-8] + rng.randbytes(8),
    "gzip bomb": lambda rng, data: _bomb(rng, data) if rng.random() < 0.05 else _flip(rng, data),
}


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)


def _swap(rng: random.Random, _folder: Path, path: Path, others: list[Path]) -> None:
    other = rng.choice(others)
    if other == path or not (other.is_file() and path.is_file()) or other.is_symlink() or path.is_symlink():
        return
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def _copied(rng: random.Random, _folder: Path, path: Path, others: list[Path]) -> None:
    other = rng.choice(others)
    data = other.read_bytes() if other.is_file() and not other.is_symlink() else b""
    _clear(path)
    path.write_bytes(data)


def _emptied(_rng: random.Random, _folder: Path, path: Path, _others: list[Path]) -> None:
    _clear(path)
    path.write_bytes(b"")


def _removed(_rng: random.Random, _folder: Path, path: Path, _others: list[Path]) -> None:
    _clear(path)


def _as_folder(rng: random.Random, _folder: Path, path: Path, _others: list[Path]) -> None:
    _clear(path)
    path.mkdir()
    if rng.random() < 0.5:
        (path / "inside").write_bytes(b"x")


def _linked(rng: random.Random, folder: Path, path: Path, others: list[Path]) -> None:
    target = rng.choice(
        (str(rng.choice(others)), str(path), "nowhere", "/etc/hostname", str(folder), "/dev/zero", "/dev/null")
    )
    _clear(path)
    path.symlink_to(target)


def _pipe(_rng: random.Random, _folder: Path, path: Path, _others: list[Path]) -> None:
    _clear(path)
    os.mkfifo(path)


_FILES: dict[str, Callable[[random.Random, Path, Path, list[Path]], None]] = {
    "swapped with another file": _swap,
    "replaced by another file": _copied,
    "emptied": _emptied,
    "removed": _removed,
    "replaced by a folder": _as_folder,
    "replaced by a link": _linked,
    "replaced by a pipe": _pipe,
}
_STRUCTURES: dict[str, dict[str, Change]] = {
    ".json": JSON,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".yaml": YAML,
    ".csv": CSV,
    ".tsv": CSV,
    ".parquet": PARQUET,
    ".safetensors": SAFETENSORS,
}
