"""Files that someone else may have written: each is checked before memory is taken, and what is wrong is one sentence.

JSON, safetensors and any regular file; tables are in `core.untrusted_tables`. Whoever reads a file of a trace, run, SAE folder or
record opens it here: the exceptions of libraries end here, close to their calls.
"""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.files import sha256_file
from moe_probe.core.text import repeated

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Bytes of a JSON file: the manifest of a trace of 10,000 shards has about 30 MB.
MOST_JSON = 1 << 28
_AGAIN = "get the file again from where it was made"


def file_size(path: Path, *, hint: str = _AGAIN) -> int:
    """Return the size of a regular file in bytes.

    Parameters
    ----------
    path : Path
    hint : str
        What the user can try.

    Returns
    -------
    int

    Raises
    ------
    MoeProbeError
        When there is no such file, it cannot be reached, or it is a folder, a pipe or a device, which could be read for ever.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        missing = isinstance(error, FileNotFoundError)
        why = "there is no such file" if missing else getattr(error, "strerror", None) or error_text(error)
        raise MoeProbeError(f"{path} cannot be read", why, hint) from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise MoeProbeError(f"{path} cannot be read", f"it is {what}, not a file", hint)
    return found.st_size


def read_bytes(path: Path, *, most: int = MOST_JSON, hint: str = _AGAIN) -> bytes:
    """Read a regular file of limited size.

    Parameters
    ----------
    path : Path
    most : int
        Largest size in bytes.
    hint : str
        What the user can try.

    Returns
    -------
    bytes

    Raises
    ------
    MoeProbeError
        As `file_size`, and when it is larger or the disk refuses.
    """
    size = file_size(path, hint=hint)
    if size > most:
        raise MoeProbeError(f"{path} cannot be read", f"it has {size:,} bytes; such a file has at most {most:,}", hint)
    try:
        return path.read_bytes()
    except OSError as error:
        raise MoeProbeError(f"{path} cannot be read", error.strerror or error_text(error), hint) from error


def file_digest(path: Path, *, hint: str = _AGAIN) -> str:
    """Compute the SHA-256 of a regular file.

    Parameters
    ----------
    path : Path
    hint : str
        What the user can try.

    Returns
    -------
    str
        Hexadecimal digits.

    Raises
    ------
    MoeProbeError
        As `file_size`, and when the disk refuses.
    """
    file_size(path, hint=hint)
    try:
        return sha256_file(path)
    except OSError as error:
        raise MoeProbeError(f"{path} cannot be read", error.strerror or error_text(error), hint) from error


def read_json(path: Path, *, most: int = MOST_JSON, hint: str = _AGAIN) -> Any:
    """Read one JSON value in UTF-8.

    Parameters
    ----------
    path : Path
    most : int
        Largest size in bytes.
    hint : str
        What the user can try.

    Returns
    -------
    object

    Raises
    ------
    MoeProbeError
        As `read_bytes`, and when it is not UTF-8, not JSON, nested too deep, has a key twice or half a surrogate pair.
    """
    data = read_bytes(path, most=most, hint=hint)
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
        if rb"\u" in data:  # a string that no file can be written with: found now rather than by whoever writes it
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        check_depth(value)
    except RecursionError as error:
        raise MoeProbeError(f"{path} cannot be read", "its values are nested too deep", hint) from error
    except ValueError as error:  # not JSON, not UTF-8, or an integer of thousands of digits
        raise MoeProbeError(f"{path} cannot be read", error_text(error), hint) from error
    return value


def check_depth(value: Any, *, most: int = 100, most_values: int | None = None) -> None:
    """Refuse values in which a function that calls itself would get lost.

    Parameters
    ----------
    value : object
        Of lists, mappings and plain values.
    most : int
        Lists and mappings within each other.
    most_values : int, optional
        Values in all, one that is named twice counted twice: YAML names values, and so writes billions of them in a line.

    Raises
    ------
    ValueError
        When it has more of either.
    """
    level, n = [value], 0
    for _ in range(most + 1):
        inner: list[Any] = []
        for one in level:
            inner.extend(one.values() if isinstance(one, dict) else one if isinstance(one, (list, tuple, set)) else ())
            if most_values is not None and n + len(inner) > most_values:
                raise ValueError(f"it has more than {most_values:,} values")
        if not inner:
            return
        level, n = inner, n + len(inner)
    raise ValueError(f"its values are nested more than {most} deep")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {str(repeated(name for name, _ in pairs))[:60]!a} is there twice")
    return found


def first_problem(error: ValidationError) -> str:
    """Say the first thing that is wrong with the fields of a file, such as ``layers.0.top_k: Field required``.

    Parameters
    ----------
    error : pydantic.ValidationError

    Returns
    -------
    str
    """
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return error_text(f"{where}: {first['msg']}" if where else first["msg"])


@contextlib.contextmanager
def open_tensors(path: Path, *, framework: str = "numpy", hint: str = _AGAIN) -> Iterator[TensorFile]:
    """Open a safetensors file whose header agrees with its size.

    Parameters
    ----------
    path : Path
    framework : {"numpy", "pt"}
        Kind of the arrays.
    hint : str
        What the user can try.

    Yields
    ------
    TensorFile

    Raises
    ------
    MoeProbeError
        When it is no regular file or no safetensors file, or the disk refuses; also where that shows inside the ``with`` block.
    """
    from safetensors import SafetensorError, safe_open

    file_size(path, hint=hint)
    try:
        with safe_open(path, framework=framework) as file:
            yield TensorFile(path, file, hint)
    except (SafetensorError, OSError) as error:
        raise MoeProbeError(f"{path} cannot be read", error_text(error), hint) from error


class TensorFile:
    """An open safetensors file; `open_tensors` makes it.

    The library has compared shapes, types and offsets with the size of the file: no shape asks for more than the file has.
    """

    def __init__(self, path: Path, file: Any, hint: str) -> None:
        self.path, self._file, self._hint = path, file, hint
        self.names = frozenset(file.keys())

    @property
    def metadata(self) -> dict[str, str]:
        """Text beside the tensors."""
        return self._file.metadata() or {}

    def damaged(self, why: str) -> MoeProbeError:
        """Make the error on this file.

        Parameters
        ----------
        why : str

        Returns
        -------
        MoeProbeError
        """
        return MoeProbeError(f"{self.path} is damaged", why, self._hint)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises
        ------
        MoeProbeError
            When there is none of that name.
        """
        return tuple(self._slice(name).get_shape())

    def check(self, name: str, dtypes: Sequence[str], shape: Sequence[int | None]) -> tuple[int, ...]:
        """Check type and shape of a tensor.

        Parameters
        ----------
        name : str
        dtypes : sequence of str
            As safetensors calls them: ``U8``, ``F16`` ...; any where empty.
        shape : sequence of int or None
            None: any length of at least 1.

        Returns
        -------
        tuple of int
            The shape.

        Raises
        ------
        MoeProbeError
            Naming the tensor and what was expected.
        """
        part = self._slice(name)
        dtype, found = part.get_dtype(), tuple(part.get_shape())
        fits = len(found) == len(shape) and all(
            n >= 1 if due is None else n == due for n, due in zip(found, shape, strict=True)
        )
        if not fits or (dtypes and dtype not in dtypes):
            due = " x ".join("any" if n is None else str(n) for n in shape)
            expected = f"{' or '.join(dtypes) or 'any type'} of shape {due}"
            raise self.damaged(f"its tensor {name} is {dtype} of shape {found}; expected {expected}")
        return found

    def tensor(self, name: str) -> Any:
        """Read a tensor whole.

        Raises
        ------
        MoeProbeError
            When there is none of that name, or its type is unknown to the framework.
        """
        self._slice(name)
        try:
            return self._file.get_tensor(name)
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:  # a type that numpy or torch lacks
            raise self.damaged(f"its tensor {name[:60]}: {error_text(error)}") from error

    def part(self, name: str, index: tuple[slice, ...]) -> Any:
        """Read a part of a tensor.

        Parameters
        ----------
        name : str
        index : tuple of slice
            Within the shape that `check` has seen.

        Returns
        -------
        ndarray or Tensor

        Raises
        ------
        MoeProbeError
            As `tensor`.
        """
        try:
            return self._slice(name)[index]
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise self.damaged(f"its tensor {name[:60]}: {error_text(error)}") from error

    def _slice(self, name: str) -> Any:
        if name not in self.names:
            raise MoeProbeError(f"{self.path} has no tensor {name}", "the file is damaged or another one", self._hint)
        return self._file.get_slice(name)
