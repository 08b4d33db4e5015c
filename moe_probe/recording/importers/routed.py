"""Arrays of routed experts in the forms that serving engines write into JSON."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from tokenize import TokenError
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError

_MAGIC = b"\x93NUMPY"
_STRING, _ARRAY = "the string as the server returned it", "the array as the server returned it"
_KINDS = ("uint8", "uint16", "uint32", "int16", "int32", "int64")


def _refused(where: str, what: str, why: str, hint: str = _ARRAY) -> MoeProbeError:
    return MoeProbeError(f"{where} has routed_experts {what}", why, hint)


class Unshaped:
    """Ids whose string does not say their shape (SGLang).

    Parameters
    ----------
    ids : ndarray of int32, shape (n_tokens * n_layers * top_k,)
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def shaped(self, n_rows: Sequence[int], layers: Sequence[int] | None, top_k: int | None, where: str) -> np.ndarray:
        """Return the ids as (token, layer, slot).

        Parameters
        ----------
        n_rows : sequence of int
            Numbers of tokens that the answer may have routing for, the likeliest first.
        layers : sequence of int, optional
            Layers that the user named: as many as the array has, or some of them.
        top_k : int, optional
            Slots per token and layer.
        where : str
            File and line, for messages.

        Returns
        -------
        ndarray of int32, shape (n_tokens, n_layers, top_k)

        Raises
        ------
        MoeProbeError
            When no number of layers fits.
        """
        if top_k is None:
            raise UsageError(
                f"{where} has base64 without a shape",
                "experts per token are not in the string",
                "--top-k 8, as the model's num_experts_per_tok says",
            )
        if layers is not None and any(rows * len(layers) * top_k == self.ids.size for rows in n_rows):
            return self.ids.reshape(-1, len(layers), top_k)
        for rows in n_rows:
            if rows > 0 and self.ids.size and not self.ids.size % (rows * top_k):
                return self.ids.reshape(rows, -1, top_k)
        raise MoeProbeError(
            f"{where} has {self.ids.size} expert ids",
            f"that is no whole number of layers for {n_rows[0]} tokens with {top_k} experts each",
            "the right --top-k, and the token ids of prompt and answer",
        )


def is_missing(value: Any) -> bool:
    """Whether an answer has no routing: null, ``{}``, ``[]`` or an empty string, as servers return it."""
    return value is None or (isinstance(value, str | list | Mapping) and not value)


def decode_routed(value: Any, where: str) -> tuple[np.ndarray | Unshaped, int | None]:
    """Decode the value of ``routed_experts``.

    Parameters
    ----------
    value : list, str or mapping
        Nested lists (token, layer, slot); base64 of a ``.npy`` file (vLLM); base64 of int32 without a shape
        (SGLang); or an object with ``data`` (base64), ``shape``, ``dtype`` and ``start``.
    where : str
        File and line, for messages.

    Returns
    -------
    ids : ndarray of int64, shape (n_tokens, n_layers, top_k), or Unshaped
        -1 where a token has no expert.
    start : int or None
        First token that has a row, where the value says it.

    Raises
    ------
    MoeProbeError
        Naming file and line. Sizes are checked before memory is taken; pickled objects are refused.
    """
    start = None
    if isinstance(value, str):
        data = _base64(value, where)
        array = _npy(data, where) if data.startswith(_MAGIC) else None
        if array is None:
            if len(data) % 4:
                expected = "base64 of 32-bit integers or of a .npy file is expected"
                raise _refused(where, f"of {len(data)} bytes", expected, _STRING)
            return Unshaped(np.frombuffer(data, dtype="<i4")), None
    elif isinstance(value, Mapping):
        array, start = _described(value, where)
    else:
        array = _nested(value, where)
    if array.ndim != 3:
        raise _refused(where, f"of shape {array.shape}", "expected (token, layer, slot)")
    ids = array.astype(np.int64)
    if array.dtype.kind == "u":  # -1 of an unsigned type
        ids[(array == np.iinfo(array.dtype).max).all(axis=(1, 2))] = -1
    return mark_empty(ids), start


def mark_empty(ids: np.ndarray) -> np.ndarray:
    """Write -1 into the slots, shape (n_tokens, n_layers, top_k), of tokens that have no routing; return the same array."""
    ids[ids < 0] = -1
    if ids.shape[2] > 1:  # a buffer that was never written: no token has expert 0 in every slot of every layer
        ids[(ids == 0).all(axis=(1, 2))] = -1
    return ids


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(where, "that are not base64", str(error), _STRING) from error


def _npy(data: bytes, where: str) -> np.ndarray:
    """Read a .npy file whose header was checked against its size, so that a false header takes no memory."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        _check_size(shape, dtype, len(data) - file.tell(), where)
        file.seek(0)
        return np.asarray(np.load(file, allow_pickle=False))
    except (ValueError, EOFError, SyntaxError, TypeError, TokenError, RecursionError, MemoryError, OverflowError) as error:
        readable = isinstance(error, ValueError | EOFError) and str(error)
        why = str(error).splitlines()[0] if readable else "its header is damaged"
        raise _refused(where, "that are no .npy file", why, _STRING) from error


def _check_size(shape: Sequence[Any], dtype: np.dtype, n_bytes: int, where: str) -> None:
    if dtype.kind not in "ui":
        raise _refused(where, f"of type {dtype}", "expert ids are whole numbers")
    if len(shape) != 3 or any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in shape):
        raise _refused(where, f"of shape {tuple(shape)}", "expected (token, layer, slot)")
    if math.prod(shape) * dtype.itemsize != n_bytes:
        why = f"as {dtype} that takes {math.prod(shape) * dtype.itemsize}"
        raise _refused(where, f"of shape {tuple(shape)} in {n_bytes} bytes", why, "the answer is cut off; save it again")


def _described(value: Mapping[str, Any], where: str) -> tuple[np.ndarray, int | None]:
    """Read an object of ``data, shape, dtype, start``."""
    for name in ("data", "shape"):
        if name not in value:
            raise MoeProbeError(
                f"{where} has a routed_experts object without '{name}'",
                f"its fields are {', '.join(map(str, list(value)[:8]))}",
                "data, shape, dtype and start",
            )
    kind, encoding = value.get("dtype", "int32"), value.get("encoding", "base64")
    if encoding != "base64" or not isinstance(value["data"], str):
        raise _refused(where, f"encoded as {encoding}", "base64 is read", "the server's version that writes base64")
    if kind not in _KINDS:
        raise _refused(where, f"of type {kind}", f"supported are {', '.join(_KINDS)}")
    shape, start = value["shape"], value.get("start")
    if not isinstance(shape, list | tuple) or not (start is None or (type(start) is int and start >= 0)):
        raise _refused(where, f"of shape {shape} from {start} on", "expected three whole numbers, and a whole number")
    data, dtype = _base64(value["data"], where), np.dtype(kind).newbyteorder("<")
    _check_size(shape, dtype, len(data), where)
    return np.frombuffer(data, dtype=dtype).reshape(shape).astype(kind), start


def _nested(value: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
        whole = array.dtype.kind in "ui" or (
            array.dtype.kind == "f" and bool((array == np.floor(array)).all()) and bool((np.abs(array) < 2**31).all())
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise _refused(where, "that are no array", str(error), "nested lists (token, layer, slot)") from error
    if not whole:
        hint = "nested lists (token, layer, slot) of ids; gate weights are not read from answers"
        raise _refused(where, "that are not whole numbers", "expert ids count from 0", hint)
    return array.astype(np.int64)
