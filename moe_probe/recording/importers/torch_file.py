"""Files of ``torch.save``, read without running anything and without taking more memory than they are long."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError

if TYPE_CHECKING:
    import numpy as np

_SAVE = "the file as the program wrote it"
#: Numbers that nested lists may have: those of 1,000 passes of 100 layers with 256 experts.
_MOST_NUMBERS = 1 << 25
_DEEPEST = 8


def read_torch_file(path: str | Path) -> Any:
    """Load a file of ``torch.save`` that has tensors, numbers, texts and containers, and nothing else.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    object
        Tensors are on the CPU; their data stay in the file until they are used.

    Raises
    ------
    MoeProbeError
        When it is no such file, is compressed or damaged, or has more than that: loading it could run code.
    """
    import torch

    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        why = "it is cut short, or was written by a torch before 1.6"
        raise MoeProbeError(f"{path} is not a file of torch.save", why, _SAVE) from error
    for entry in entries:  # torch stores its entries as they are: a compressed one could unpack to any size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise MoeProbeError(f"{path} is refused", f"its entry '{entry.filename[:60]!r}' is compressed", _SAVE)
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise MoeProbeError(f"{path} is refused", "its entries declare more bytes than the file has", _SAVE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols of pickle: what cannot be read is an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise MoeProbeError(
            f"{path} is refused", "it has more than tensors and numbers, and loading it could run code", _SAVE
        ) from error
    except (RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, OSError, OverflowError) as error:
        raise MoeProbeError(f"{path} cannot be read", str(error).partition("\n")[0][:200], _SAVE) from error


def as_array(value: Any, where: str) -> np.ndarray:
    """Return a tensor, or nested lists of numbers, as an array.

    Parameters
    ----------
    value : Tensor or list
    where : str
        Names the entry, for messages.

    Returns
    -------
    ndarray

    Raises
    ------
    MoeProbeError
        When it is neither; when a tensor is larger than the data behind it; when the lists are of unequal length or
        have anything but numbers.
    """
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        stored = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
        if not stored or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise MoeProbeError(f"{where} is refused", "it declares more elements than are stored", _SAVE)
        if value.dtype == torch.bool or value.is_complex():
            raise MoeProbeError(f"{where} has the type {value.dtype}", "it has no counts", _SAVE)
        return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).detach().resolve_neg().numpy()
    if not isinstance(value, list):
        raise MoeProbeError(f"{where} is no array", f"it is {type(value).__name__}", "a tensor, or lists of numbers")
    # a pickle stores a list that comes again as a reference: nested ones could unfold to any size
    if _n_numbers(value) > _MOST_NUMBERS:
        raise MoeProbeError(f"{where} is refused", f"its lists have more than {_MOST_NUMBERS:,} numbers", "a tensor")
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise MoeProbeError(
            f"{where} is no array", "its lists have unequal lengths", "a tensor, or lists of numbers"
        ) from error
    if array.dtype.kind not in "iuf":
        raise MoeProbeError(f"{where} is no array", "it has more than numbers", "a tensor, or lists of numbers")
    return array


def _n_numbers(value: Any, known: dict[int, int] | None = None, depth: int = 0) -> int:
    """Count the numbers of nested lists; every list is walked through once, however often it is referred to."""
    if not isinstance(value, list):
        return 1
    if depth > _DEEPEST:
        return _MOST_NUMBERS + 1
    known = {} if known is None else known
    if id(value) not in known:
        known[id(value)] = 0  # a list within itself ends here, and is refused as uneven
        known[id(value)] = sum(_n_numbers(item, known, depth + 1) for item in value)
    return known[id(value)]
