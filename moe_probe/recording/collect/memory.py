"""How many tokens fit into a forward pass, and whether an error says that too many were tried."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

#: Tokens of a batch on a processor: more are no faster there.
CPU_TOKENS = 4096
#: On GPUs: beyond the larger number hardly anything is gained, and a shard should have several batches.
_GPU_TOKENS = (1024, 32768)
#: Share of the free memory that a batch may take: experts get unequal shares of other texts, and memory is not one piece.
_SHARE = 0.6
_WORDS = re.compile(r"out of memory|not enough memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: torch's own type, Python's, or an allocator's words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_WORDS.search(str(error)))


def release(devices: Iterable[torch.device]) -> None:
    """Give back what a failed forward pass left behind, and what torch's allocators keep for later."""
    gc.collect()
    for device in devices:
        if device.type != "cpu":
            torch.get_device_module(device).empty_cache()


def automatic_batch_tokens(
    devices: Iterable[torch.device],
    run: Callable[[int], object],
    *,
    length: int,
    module_of: Callable[[torch.device], Any] = torch.get_device_module,
) -> int:
    """Choose the tokens of a batch by the memory that is free.

    Two small batches are run; the difference of their peaks is what a token costs, whatever the model and what is kept.

    Parameters
    ----------
    devices : iterable of torch.device
        On which the model computes.
    run : callable
        Runs a batch of so many windows of `length` tokens, and everything that collecting does with it on the device.
    length : int
        Tokens of the longest window.
    module_of : callable
        Returns torch's module for a device (`torch.cuda`); replaced in tests.

    Returns
    -------
    int
        4,096 without a GPU whose memory can be measured. Otherwise a power of two of at most 32,768, so that small
        differences of free memory seldom change it, and of at least 1,024.
    """
    modules = {d: module_of(d) for d in dict.fromkeys(devices) if d.type != "cpu"}
    modules = {d: m for d, m in modules.items() if hasattr(m, "mem_get_info")}
    if not modules:
        return CPU_TOKENS
    lowest, highest = _GPU_TOKENS
    peaks = []
    try:
        for n_windows in (1, 1, 2):  # the first one makes what stays: libraries' workspaces, compiled kernels
            for device, module in modules.items():
                module.reset_peak_memory_stats(device)
            run(n_windows)
            for device, module in modules.items():
                module.synchronize(device)
            peaks.append({device: module.max_memory_allocated(device) for device, module in modules.items()})
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peaks.clear()
    release(modules)
    if not peaks:
        return lowest  # the first batch will tell: it is halved, or refused in a sentence
    tokens = min(_fitting(module, device, peaks, length) for device, module in modules.items())
    return 1 << (max(lowest, min(tokens, highest)).bit_length() - 1)


def _fitting(module: Any, device: torch.device, peaks: list[dict[torch.device, int]], length: int) -> int:
    """Tokens that fit into a device's free memory."""
    free, _ = module.mem_get_info(device)
    # after empty_cache what is reserved and not allocated is in pieces between tensors; it is not counted
    per_token = max(1.0, (peaks[2][device] - peaks[1][device]) / length)
    return int(_SHARE * free / per_token)
