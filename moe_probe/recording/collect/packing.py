"""From the model's devices to the host: what a batch leaves behind is packed and copied at once, and nobody waits for it.

All layers of a device go into one buffer, padding left out; the copy runs beside the next forward pass, on a stream of its
own, into memory that the GPU writes without the processor's help. Whoever stores the numbers waits for them, in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Every part of a buffer begins at a multiple of this, so that it can be viewed as numbers of any type.
_ALIGNMENT = 16


class Part(NamedTuple):
    """Numbers of a batch that are kept.

    Attributes
    ----------
    values : Tensor, shape (T, ...)
        On a device of the model.
    rows : Tensor of int64, shape (n,), or None
        Rows that are kept, on the host; None for all.
    dtype : torch.dtype
        As which they are kept.
    store : callable
        Takes them as an array of shape (n, ...), which is only lent: its memory is used again. Types that numpy does not
        have come as integers of their size.
    """

    values: Tensor
    rows: Tensor | None
    dtype: torch.dtype
    store: Callable[[np.ndarray], None]


class Packed:
    """Parts of one batch on their way to the host.

    Parameters
    ----------
    parts : sequence of Part
    copier : Copier
    """

    def __init__(self, parts: Sequence[Part], copier: Copier) -> None:
        self._buffers: list[tuple[Callable[[], Tensor], list[_Place]]] = []
        for device in dict.fromkeys(part.values.device for part in parts):
            buffer, places = _pack([part for part in parts if part.values.device == device], device)
            self._buffers.append((copier.copy(buffer), places))

    def store(self) -> None:
        """Wait until the numbers have arrived, and store every part."""
        for arrived, places in self._buffers:
            host = arrived()
            for place in places:
                place.store(as_array(place.view(host)))


class _Place(NamedTuple):
    """Where a part lies in a buffer, and who takes it; it does not keep the part's numbers on the device."""

    where: slice
    dtype: torch.dtype
    shape: tuple[int, ...]
    store: Callable[[np.ndarray], None]

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.where].view(self.dtype).view(self.shape)


def _pack(parts: Sequence[Part], device: torch.device) -> tuple[Tensor, list[_Place]]:
    """Put the chosen rows of all parts into one buffer of bytes; nothing here waits for a GPU."""
    places: list[_Place] = []
    size = 0
    for part in parts:
        n_rows = len(part.values) if part.rows is None else len(part.rows)
        shape = (n_rows, *part.values.shape[1:])
        n_bytes = int(np.prod(shape)) * part.dtype.itemsize
        places.append(_Place(slice(size, size + n_bytes), part.dtype, shape, part.store))
        size += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    moved: dict[int, Tensor] = {}
    for part, place in zip(parts, places, strict=True):
        values = part.values
        if part.rows is not None:
            if id(part.rows) not in moved:
                moved[id(part.rows)] = part.rows.to(device, non_blocking=True)
            values = values.index_select(0, moved[id(part.rows)])
        place.view(buffer).copy_(values)
    return buffer, places


def as_array(values: Tensor) -> np.ndarray:
    """View a tensor of the host as an array that shares its memory; bfloat16 as int16."""
    array: np.ndarray = (values.view(torch.int16) if values.dtype is torch.bfloat16 else values).numpy()
    return array


def _pinned(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)


class Copier:
    """Copies buffers of bytes to the host.

    Parameters
    ----------
    module_of : callable
        Returns torch's module for a device (`torch.cuda`); replaced in tests.
    pinned : callable
        Makes so many bytes of memory that a GPU writes by itself; replaced in tests.
    """

    def __init__(
        self,
        module_of: Callable[[torch.device], Any] = torch.get_device_module,
        pinned: Callable[[int], Tensor] = _pinned,
    ) -> None:
        self._module_of, self._pinned = module_of, pinned
        self._streams: dict[torch.device, Any] = {}

    def copy(self, buffer: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a buffer.

        Parameters
        ----------
        buffer : Tensor of uint8
            Just written, by work that may still be queued on its device.

        Returns
        -------
        callable
            Waits for the copy, and returns it.
        """
        device = buffer.device
        if device.type == "cpu":
            return lambda: buffer
        module = self._module_of(device)
        if not hasattr(module, "Stream"):  # no streams, as on Apple's GPUs: a plain copy
            host = buffer.cpu()
            return lambda: host
        if device not in self._streams:
            self._streams[device] = module.Stream(device)
        stream = self._streams[device]
        # torch keeps pinned buffers in a cache and hands one out again only after the copy into it is over
        host = self._pinned(len(buffer))
        stream.wait_stream(module.current_stream(device))
        with module.stream(stream):
            host.copy_(buffer, non_blocking=True)
        buffer.record_stream(stream)  # its memory is not given away before the copy is over
        done = stream.record_event(module.Event(blocking=True))  # blocking: the waiting thread sleeps

        def arrived() -> Tensor:
            done.synchronize()
            return host

        return arrived
