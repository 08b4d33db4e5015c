"""Arrays in a file, or in memory: checked by their headers, read in pieces of their first axis."""

from __future__ import annotations

import hashlib
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_file
from moe_probe.core.text import some_of
from moe_probe.core.textfiles import array_limit, too_long

#: Name of arrays in memory in messages.
IN_MEMORY = Path("arrays in memory")
#: What damage makes the libraries raise; numpy's headers are Python literals, and read as such.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, NotImplementedError, ValueError),
    *(SyntaxError, tokenize.TokenError, SafetensorError),
)
_PIECE = 1 << 24  # bytes read at a time where an array is read whole
_ENDINGS = "arrays in .npz or .safetensors"
_SAFE_TYPES = {
    f"{letter}{8 * size}": f"{kind}{8 * size}"
    for letter, kind, sizes in (("U", "uint", (1, 2, 4, 8)), ("I", "int", (1, 2, 4, 8)), ("F", "float", (2, 4, 8)))
    for size in sizes
}


@dataclass(frozen=True)
class StoredArray:
    """An array that is read in pieces.

    Attributes
    ----------
    name : str
        Name and file, for messages.
    shape : tuple of int
    dtype : numpy.dtype
        Of whole numbers or floats.
    pieces_of : callable
        Takes a number of rows; yields the array in pieces of so many.
    packed : bool
        Whether it is compressed, and may be much larger than its file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces_of: Callable[[int], Iterator[np.ndarray]]
    packed: bool = False

    def pieces(self, n_rows: int) -> Iterator[np.ndarray]:
        """Yield the array in pieces of its first axis.

        Parameters
        ----------
        n_rows : int
            Rows of a piece at most.

        Yields
        ------
        ndarray

        Raises
        ------
        MoeProbeError
            When the file is damaged.
        """
        try:
            yield from self.pieces_of(max(1, n_rows))
        except _BROKEN as error:
            raise _damaged(self.name, error) from error

    def whole(self) -> np.ndarray:
        """Return the array; memory is taken as far as the file really goes.

        Raises
        ------
        MoeProbeError
            When the file is damaged, or compressed and the array larger than `array_limit`.
        """
        if self.packed and prod(self.shape) * self.dtype.itemsize > array_limit():
            raise too_long(self.name, array_limit(), "bytes")
        row = max(1, prod(self.shape[1:]) * self.dtype.itemsize)
        pieces = list(self.pieces(_PIECE // row))
        return np.concatenate(pieces) if pieces else np.zeros(self.shape, dtype=self.dtype)

    def number(self) -> int:
        """Return the one whole number that the array has.

        Raises
        ------
        MoeProbeError
            When it has several, or none.
        """
        if prod(self.shape) != 1 or self.dtype.kind not in "iu":
            raise MoeProbeError(f"{self.name} is not one whole number", f"{self.dtype} of shape {self.shape}", "one number")
        return int(self.whole().reshape(-1)[0])

    def need(self, kind: str, n_axes: int) -> StoredArray:
        """Return itself, or refuse an array of another kind.

        Parameters
        ----------
        kind : {"whole", "number"}
            Whole numbers, or any numbers.
        n_axes : int

        Returns
        -------
        StoredArray

        Raises
        ------
        MoeProbeError
        """
        if len(self.shape) != n_axes:
            axes = {1: "(token)", 3: "three axes"}[n_axes]
            raise MoeProbeError(f"{self.name} has shape {self.shape}", f"it should have {axes}", "docs/formats.md")
        if kind == "whole" and self.dtype.kind not in "iu":
            raise MoeProbeError(f"{self.name} has values of type {self.dtype}", "", "whole numbers, such as int32")
        return self


def open_arrays(source: str | Path | Mapping[str, Any]) -> tuple[Path, dict[str, StoredArray], str]:
    """Open arrays by their headers.

    Parameters
    ----------
    source : path, or mapping of str to array
        ``.npz`` or ``.safetensors``; or arrays in memory.

    Returns
    -------
    path : Path
        `IN_MEMORY` for arrays in memory.
    arrays : dict of str to StoredArray
    hash : str
        SHA-256 of the file, or of the arrays.

    Raises
    ------
    MoeProbeError
        When the file is none of these, is damaged, declares other sizes than it has, or has arrays of objects.
    """
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(value) for name, value in source.items() if value is not None}
        digest = hashlib.sha256()
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return IN_MEMORY, {name: _in_memory(name, array) for name, array in arrays.items()}, digest.hexdigest()
    path = Path(source)
    if not path.is_file():
        raise MoeProbeError(f"there is no file {path}", "", _ENDINGS)
    openers = {".npz": _open_npz, ".safetensors": _open_safetensors}
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise MoeProbeError(f"unknown format of {path}", f"its name ends in '{path.suffix}'", _ENDINGS)
    try:
        opened = opener(path)
    except _BROKEN as error:
        raise _damaged(str(path), error) from error
    return path, opened, sha256_file(path)


def need_array(arrays: Mapping[str, StoredArray], names: tuple[str, ...], path: Path) -> str:
    """Find the one array that is there under one of some names.

    Parameters
    ----------
    arrays : mapping of str to StoredArray
    names : tuple of str
    path : Path

    Returns
    -------
    str
        The name.

    Raises
    ------
    MoeProbeError
        When there is none, or several.
    """
    found = [name for name in names if name in arrays]
    if len(found) == 1:
        return found[0]
    if found:
        raise MoeProbeError(f"{path} has {' and '.join(found)}", "one of them says what the other says", "one of the two")
    raise MoeProbeError(f"{path} has no array '{' or '.join(names)}'", f"it has {some_of(arrays, 12)}", "docs/formats.md")


def layer_numbers(arrays: Mapping[str, StoredArray], n_layers: int, wanted: tuple[int, ...] | None, path: Path) -> list[int]:
    """Find the numbers of arrays' layers: as they say, or as the options do where these name as many, or from 0.

    Parameters
    ----------
    arrays : mapping of str to StoredArray
        With or without ``layers``.
    n_layers : int
        Layers of the other arrays.
    wanted : tuple of int or None
        Layers that the user named.
    path : Path

    Returns
    -------
    list of int

    Raises
    ------
    MoeProbeError
        When ``layers`` has another length, or negative numbers.
    """
    if "layers" not in arrays:
        return list(wanted) if wanted is not None and len(wanted) == n_layers else list(range(n_layers))
    stored = arrays["layers"].need("whole", 1)
    if stored.shape[0] != n_layers:  # before any of it is unpacked
        what = f"'layers' of {path} has {stored.shape[0]:,} numbers for {n_layers} layers"
        raise MoeProbeError(what, "it numbers the layers of the other arrays", "one number of 0 or more per layer")
    numbers: list[int] = stored.whole().tolist()
    if len(numbers) != n_layers or any(not 0 <= number < 1_000_000 for number in numbers):
        what = f"'layers' of {path} has {len(numbers)} numbers for {n_layers} layers"
        if len(numbers) == n_layers:
            what = f"'layers' of {path} has {min(numbers)} to {max(numbers)}"
        raise MoeProbeError(what, "it numbers the layers of the other arrays", "one number of 0 or more per layer")
    return numbers


def _in_memory(name: str, array: np.ndarray) -> StoredArray:
    _check_type(f"'{name}'", array.dtype)

    def pieces(n_rows: int) -> Iterator[np.ndarray]:
        rows = np.atleast_1d(array)
        return (rows[start : start + n_rows] for start in range(0, len(rows), n_rows))

    return StoredArray(f"'{name}'", array.shape, array.dtype, pieces)


def _check_type(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        why = "objects would be read by running code" if dtype.hasobject else f"its type is {dtype}"
        raise MoeProbeError(f"{name} does not hold numbers", why, "arrays of whole numbers or floats of at most 64 bits")


def _damaged(name: str, error: Exception) -> MoeProbeError:
    why = " ".join(str(error).split()) or type(error).__name__
    return MoeProbeError(f"{name} cannot be read", why, "copy or download the file again")


def _open_npz(path: Path) -> dict[str, StoredArray]:
    out: dict[str, StoredArray] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            key = info.filename.removesuffix(".npy")
            name = f"'{key}' of {path}"
            if key in out:
                raise MoeProbeError(f"{name} is there twice", "", "one array per name")
            with archive.open(info) as file:
                shape, fortran, dtype = _header(file)
                begin = file.tell()
            _check_type(name, dtype)
            size = prod(shape) * dtype.itemsize
            if any(n < 0 for n in shape) or size != info.file_size - begin:
                what = f"{name} declares {size:,} bytes of type {dtype} and has {info.file_size - begin:,}"
                raise MoeProbeError(what, f"its shape is {shape}", "copy or download the file again")
            packed = info.compress_type != zipfile.ZIP_STORED
            at_once = size if fortran else size // max(1, shape[0] if shape else 1)
            if packed and at_once > array_limit():
                raise too_long(f"a row of {name}", array_limit(), "bytes")
            pieces = _npz_pieces(path, info.filename, fortran=fortran)
            out[key] = StoredArray(name, shape, dtype.newbyteorder("="), pieces, packed)
    return out


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(shape), fortran, dtype


def _npz_pieces(path: Path, member: str, *, fortran: bool) -> Callable[[int], Iterator[np.ndarray]]:
    def pieces(n_rows: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            shape, _, dtype = _header(file)
            if fortran:  # the first axis is the last on disk: rows cannot be read apart
                data = b"".join(iter(lambda: file.read(_PIECE), b""))
                array = np.frombuffer(data, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="), copy=False)
                yield from (array[start : start + n_rows] for start in range(0, len(array), n_rows))
                return
            if not shape:
                yield np.frombuffer(file.read(), dtype)
                return
            row = prod(shape[1:])
            for start in range(0, shape[0], n_rows):
                n = min(n_rows, shape[0] - start)
                data = file.read(n * row * dtype.itemsize)
                piece = np.frombuffer(data, dtype).reshape((n, *shape[1:]))
                yield piece.astype(dtype.newbyteorder("="), copy=False)

    return pieces


def _open_safetensors(path: Path) -> dict[str, StoredArray]:
    out: dict[str, StoredArray] = {}
    with safe_open(path, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(key)
            kind, name = part.get_dtype(), f"'{key}' of {path}"
            if kind not in _SAFE_TYPES:
                raise MoeProbeError(
                    f"{name} has values of type {kind}", "numpy has no such numbers", "float32, or whole numbers"
                )
            shape, dtype = tuple(part.get_shape()), np.dtype(_SAFE_TYPES[kind])
            out[key] = StoredArray(name, shape, dtype, _safe_pieces(path, key, shape))
    return out


def _safe_pieces(path: Path, key: str, shape: tuple[int, ...]) -> Callable[[int], Iterator[np.ndarray]]:
    def pieces(n_rows: int) -> Iterator[np.ndarray]:
        with safe_open(path, framework="numpy") as file:
            if not shape:
                yield file.get_tensor(key).reshape(1)
                return
            part = file.get_slice(key)
            for start in range(0, shape[0], n_rows):
                yield np.asarray(part[start : min(start + n_rows, shape[0])])

    return pieces
