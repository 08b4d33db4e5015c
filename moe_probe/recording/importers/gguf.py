"""A reader of GGUF files: what they declare, and single tensors of numbers; nothing is trusted before its size is checked.

Written from the specification ``docs/gguf.md`` of the repository ggml-org/ggml (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moe_probe.core.errors import MoeProbeError

MAGIC = b"GGUF"
_AGAIN = "copy or make the file again"
#: Scalar types of metadata by their number in the file; 7 is bool, one byte that is 0 or 1.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
#: Types of tensors whose elements are plain numbers; those of quantised weights are never read here.
_NUMBERS = {0: "<f4", 1: "<f2", 24: "<i1", 25: "<i2", 26: "<i4", 27: "<i8", 28: "<f8"}
_MOST_DIMENSIONS = 4  # as ggml has it
_LONGEST_NAME = 65535
# The fewest bytes that a pair of metadata and the description of a tensor can take: bounds for declared numbers of them.
_LEAST_PAIR, _LEAST_TENSOR = 13, 24


@dataclass(frozen=True)
class GgufTensor:
    """What a GGUF file declares of one tensor.

    Attributes
    ----------
    name : str
    shape : tuple of int
        In the order of the file: the first dimension varies fastest.
    kind : int
        Number of the ggml type.
    start : int
        Byte of the file at which its data begin.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file as far as it has been read: its metadata, and where its tensors are.

    Attributes
    ----------
    path : Path
    metadata : mapping of str to bool, int, float, str or tuple of str
        Scalars, texts and arrays of texts; arrays of numbers are not kept.
    tensors : mapping of str to GgufTensor
    """

    path: Path
    metadata: Mapping[str, bool | int | float | str | tuple[str, ...]] = field(default_factory=dict)
    tensors: Mapping[str, GgufTensor] = field(default_factory=dict)

    def array(self, name: str) -> np.ndarray:
        """Read one tensor of plain numbers.

        Parameters
        ----------
        name : str

        Returns
        -------
        ndarray, shape (n_elements,)
            In the order of the file.

        Raises
        ------
        MoeProbeError
            When its type is a quantised one.
        """
        tensor = self.tensors[name]
        dtype = _NUMBERS.get(tensor.kind)
        if dtype is None:
            raise MoeProbeError(
                f"tensor '{name}' of {self.path} cannot be read", f"its ggml type is {tensor.kind}", "float32 or integers"
            )
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            return np.frombuffer(file.read(tensor.size * np.dtype(dtype).itemsize), dtype=dtype)


def is_gguf(path: str | Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: str | Path) -> GgufFile:
    """Read the metadata of a GGUF file, and what it declares of its tensors.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    GgufFile
        Its tensors are still on disk; all of plain numbers lie within the file.

    Raises
    ------
    MoeProbeError
        When it is no GGUF file of version 2 or 3, or a declared number or size goes beyond the file, a name is no text or
        comes twice, naming the entry.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(path, file, size)
        if reader.take(len(MAGIC), "the header") != MAGIC:
            raise MoeProbeError(f"{path} is not a GGUF file", "it does not begin with 'GGUF'", "check the path")
        version = reader.number("I", "the header")
        if version not in (2, 3):
            swapped = struct.unpack(">I", struct.pack("<I", version))[0]
            why = (
                "its numbers are big-endian" if swapped in (2, 3) else f"its version is {version}; versions 2 and 3 are read"
            )
            raise MoeProbeError(f"{path} is a GGUF file that cannot be read", why, "convert it to version 3, little-endian")
        n_tensors, n_pairs = reader.number("Q", "the header"), reader.number("Q", "the header")
        reader.check(n_pairs * _LEAST_PAIR + n_tensors * _LEAST_TENSOR, f"{n_pairs:,} pairs and {n_tensors:,} tensors")
        metadata: dict[str, bool | int | float | str | tuple[str, ...]] = {}
        keys: set[str] = set()
        for i in range(n_pairs):
            key = reader.name(f"key {i + 1} of the metadata", keys)
            value = reader.value(f"'{key}' of the metadata")
            if value is not None:
                metadata[key] = value
        described = [_described(reader, i, n_tensors) for i in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1 or alignment % 8:
            raise reader.error("'general.alignment'", f"it is {alignment!r}, not a multiple of 8")
        data = -(-file.tell() // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in described:
        tensor = GgufTensor(name, shape, kind, data + offset)
        what = f"tensor '{name}'"
        if name in tensors:
            raise reader.error(what, "it comes twice")
        if offset % alignment:
            raise reader.error(what, f"its offset {offset:,} is no multiple of {alignment}")
        end = tensor.start + (tensor.size * np.dtype(_NUMBERS[kind]).itemsize if kind in _NUMBERS else 0)
        if end > size:
            raise reader.error(what, f"its data would end at byte {end:,} of {size:,}")
        tensors[name] = tensor
    return GgufFile(path, metadata, tensors)


def _described(reader: _Reader, ordinal: int, total: int) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of the next tensor."""
    name = reader.name(f"the name of tensor {ordinal + 1} of {total}")
    what = f"tensor '{name}'"
    dimensions = reader.number("I", what)
    if dimensions > _MOST_DIMENSIONS:
        raise reader.error(what, f"it would have {dimensions:,} dimensions; {_MOST_DIMENSIONS} are the most")
    shape = tuple(reader.number("Q", what) for _ in range(dimensions))
    return name, shape, reader.number("I", what), reader.number("Q", what)


class _Reader:
    """Reads a file forwards; every size is compared with what is left before memory is taken."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def error(self, what: str, why: str) -> MoeProbeError:
        """Build the error for an entry."""
        return MoeProbeError(f"{self.path} is damaged at {what}", why, _AGAIN)

    def check(self, n: int, what: str) -> None:
        """Refuse what takes more bytes than are left."""
        left = self.size - self.file.tell()
        if n > left:
            raise self.error(what, f"{n:,} bytes are needed, {left:,} are left in the file")

    def take(self, n: int, what: str) -> bytes:
        """Read n bytes."""
        self.check(n, what)
        return self.file.read(n)

    def number(self, code: str, what: str) -> int:
        """Read an integer."""
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0])

    def text(self, what: str) -> str:
        """Read a string: its length, then UTF-8."""
        length = self.number("Q", what)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(what, "it is not UTF-8") from error

    def name(self, what: str, known: set[str] | None = None) -> str:
        """Read a name: a short string of printable characters."""
        name = self.text(what)
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise self.error(what, f"{name[:40]!r} is no name: it is empty, too long, or has control characters")
        if known is not None:
            if name in known:
                raise self.error(what, f"'{name}' comes twice")
            known.add(name)
        return name

    def value(self, what: str) -> bool | int | float | str | tuple[str, ...] | None:
        """Read a value of metadata; None for arrays of numbers, which are passed over."""
        kind = self.number("I", what)
        if kind == _STRING:
            return self.text(what)
        if kind in _SCALARS:
            value = struct.unpack(f"<{_SCALARS[kind]}", self.take(struct.calcsize(f"<{_SCALARS[kind]}"), what))[0]
            return bool(value) if kind == _BOOL else value
        if kind != _ARRAY:
            raise self.error(what, f"its type is {kind}, which GGUF does not have")
        kind, n = self.number("I", what), self.number("Q", what)
        if kind == _STRING:
            self.check(8 * n, what)
            return tuple(self.text(what) for _ in range(n))
        if kind not in _SCALARS:
            raise self.error(what, f"it is an array of type {kind}")
        length = n * struct.calcsize(f"<{_SCALARS[kind]}")
        self.check(length, what)
        self.file.seek(length, 1)
        return None
