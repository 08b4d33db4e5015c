"""Hooks and replaced forwards that are gone when a ``with`` block is left, also by an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks when the ``with`` block is left."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def runs_own_forward(module: nn.Module) -> bool:
    """Whether calling a module runs the forward of its class.

    The package accelerate replaces the forwards of models on several devices by ones that fetch weights and move inputs
    first: these count as their own. Others (compiled parts, models split over processes) do not.
    """
    return "forward" not in vars(module) or hasattr(module, "_hf_hook")


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replace the forwards of modules inside the ``with`` block, by attributes of these objects alone."""
    before = []
    for module, forward in forwards:
        before.append((module, vars(module).get("forward")))
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before:
            if own is None:
                del module.forward
            else:
                module.forward = own
