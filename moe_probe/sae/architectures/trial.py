"""GPU kernels are used on a device once they have run there and agreed with plain torch; otherwise it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def agrees(difference: Callable[[torch.device], float], device: torch.device, *, what: str, tolerated: float) -> bool:
    """Try kernels on a device; callers keep the answer.

    Parameters
    ----------
    difference : callable
        Runs kernels and plain torch on a device, and returns their largest difference. An ImportError means that there is
        no Triton, which comes with torch where it is supported.
    device : torch.device
    what : str
        What the kernels do, as a noun, for the warning.
    tolerated : float
        Largest difference that is rounding.

    Returns
    -------
    bool
    """
    try:
        found = difference(device)
    except ImportError:
        return False
    except Exception as error:  # compilers and drivers raise anything
        _say_plain(what, f"{type(error).__name__}: {error}")
        return False
    if not found <= tolerated:
        _say_plain(what, f"their result differs from plain torch by {found:.1e}")
        return False
    return True


def _say_plain(what: str, reason: str) -> None:
    warnings.warn(
        f"{what} does not work on this GPU ({reason}); plain torch is used, which is slower", RuntimeWarning, stacklevel=3
    )
