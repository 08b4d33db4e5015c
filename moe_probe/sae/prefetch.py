"""Read, shuffle and copy activations while the steps run: the same batches in the same order."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import starmap

import torch
from torch import Tensor

from moe_probe.core.overlap import Ahead
from moe_probe.sae.activations import ActivationReader, Batch, gather

#: Batches that are ready before they are needed.
AHEAD = 2


@contextmanager
def epochs_of(
    reader: ActivationReader, *, epochs: int, start: int = 0, device: torch.device | None = None, ahead: int = AHEAD
) -> Iterator[Iterator[Batch]]:
    """Read the batches of several epochs ahead of the steps.

    One thread reads the next pool from disk while another gathers the rows of the next batches from the current one: two
    pools are in memory at once. For a GPU, rows are gathered into pinned memory and copied on a stream of their own.

    Parameters
    ----------
    reader : ActivationReader
    epochs : int
    start : int
        First batch to read, counted over all epochs.
    device : torch.device, optional
        GPU to copy activations to; they stay on the CPU by default.
    ahead : int
        Batches that are ready before they are needed; 0 to read without threads.

    Yields
    ------
    iterator of Batch
    """
    pieces = _pieces(reader, epochs, start, threaded=ahead > 0)
    if not ahead:
        with closing(pieces):
            yield starmap(gather, pieces)
    elif device is not None and device.type == "cuda":
        with Ahead(_copied(pieces, device, ahead), depth=ahead, name="batches") as copied:
            yield _received(copied, device)
    else:
        with Ahead(_gathered(pieces), depth=ahead, name="batches") as batches:
            yield batches


def _pieces(
    reader: ActivationReader, epochs: int, start: int, *, threaded: bool
) -> Generator[tuple[Batch, Tensor], None, None]:
    """Yield a pool and the entries of it that make a batch, for all batches in order."""
    with Ahead(_pools(reader, epochs, start), depth=int(threaded), name="pools") as read:
        for pool, pieces in read:
            for piece in pieces:
                yield pool, piece
            del pool


def _pools(reader: ActivationReader, epochs: int, start: int) -> Iterator[tuple[Batch, tuple[Tensor, ...]]]:
    for epoch in range(epochs):
        n = reader.n_batches(epoch)
        if start < n:
            yield from reader.pools(epoch=epoch, start=start)
        start = max(0, start - n)


def _gathered(pieces: Generator[tuple[Batch, Tensor], None, None]) -> Iterator[Batch]:
    with closing(pieces):
        yield from starmap(gather, pieces)


def _copied(
    pieces: Generator[tuple[Batch, Tensor], None, None], device: torch.device, ahead: int
) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Gather into pinned memory, used in turn, and copy to a GPU on a stream of its own; the event is when that has ended."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    staged: list[tuple[Tensor, torch.cuda.Event]] = []
    with closing(pieces):
        for number, (pool, piece) in enumerate(pieces):
            turn = number % (ahead + 1)
            shape = (len(piece), *pool.values.shape[1:])
            if turn < len(staged):
                memory, done = staged[turn]
                done.synchronize()  # the copy from this memory, some batches ago
            else:
                memory, done = _pinned((0,), pool.values.dtype), torch.cuda.Event()  # type: ignore[no-untyped-call]
                staged.append((memory, done))
            if memory.numel() < math.prod(shape):
                memory = _pinned((math.prod(shape),), pool.values.dtype)
                staged[turn] = memory, done
            batch = gather(pool, piece, out=memory[: math.prod(shape)].view(shape))
            values = _start_copy(batch.values, device, stream, done)
            yield batch._replace(values=values), done


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def _start_copy(values: Tensor, device: torch.device, stream: torch.cuda.Stream, done: torch.cuda.Event) -> Tensor:
    with torch.cuda.stream(stream):
        copied = values.to(device, non_blocking=True)
        done.record(stream)
    return copied


def _received(copied: Iterator[tuple[Batch, torch.cuda.Event]], device: torch.device) -> Iterator[Batch]:
    """Let the stream of the steps wait for each copy; the host does not."""
    for batch, done in copied:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(done)
        batch.values.record_stream(stream)
        yield batch
