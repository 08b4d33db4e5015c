"""Run the layers below an intervention once, not again for every unit that is ablated."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.models.adapters.base import MoeSite, first_input
from moe_probe.models.capture import enclosing_layer
from moe_probe.models.hooks import replaced_forwards, runs_own_forward


class PrefixCache:
    """Cache of the outputs of the layer below a site, and of the modules between them, for each batch.

    From the second pass on, the layers below return their input, and the last of them returns its output of the first
    pass; so do those modules of the site's own layer that run once and before the site (attention, norms). That is right
    only where nothing else passes between layers, and where nothing is written in place into what was returned. Whoever
    uses it must compare passes with a plain one (`knock_out` does, and runs without the cache where they differ).

    Parameters
    ----------
    model : nn.Module
    site : MoeSite
        The lowest layer that is changed.
    max_bytes : int
        Size of the cache; batches beyond it are computed as usual.

    Attributes
    ----------
    below : tuple of nn.Module
        Layers that are skipped; none where the site is in the first one or not in a numbered layer.
    """

    def __init__(self, model: nn.Module, site: MoeSite, *, max_bytes: int = 2**30) -> None:
        self.below = _layers_below(model, site)
        self._own = list(enclosing_layer(model, site).children()) if self.below else []
        self._changed = tuple(m for m in (site.block, site.router, site.experts) if m is not None)
        self._kept: dict[Hashable, list[tuple[nn.Module, Any]]] = {}
        self._room = max_bytes

    @contextmanager
    def using(self, key: Hashable) -> Iterator[None]:
        """Inside the ``with`` block, run the model on the batch of this key."""
        if not self.below:
            yield
        elif key in self._kept:
            cached = [(m, partial(_return, x)) for m, x in self._kept[key]]
            with replaced_forwards([*((m, _return_input) for m in self.below[:-1]), *cached]):
                yield
        else:
            with self._recording(key):
                yield

    @contextmanager
    def _recording(self, key: Hashable) -> Iterator[None]:
        calls: list[tuple[nn.Module, Any]] = []

        def keep(module: nn.Module, _args: Any, output: Any) -> None:
            calls.append((module, _copied(output)))

        with ExitStack() as stack:
            for module in (self.below[-1], *self._own):
                stack.callback(module.register_forward_hook(keep).remove)
            yield
        kept = self._before(calls)
        size = sum(x.nbytes for _, output in kept for x in _tensors(output))
        if kept and size <= self._room:
            self._room -= size
            self._kept[key] = kept

    def _before(self, calls: list[tuple[nn.Module, Any]]) -> list[tuple[nn.Module, Any]]:
        """Select the outputs to cache: of the layer below, and of modules of the own layer that end before the site begins."""
        if not calls or calls[0][0] is not self.below[-1] or not isinstance(calls[0][1], Tensor):
            return []
        out = [calls[0]]
        for module, output in calls[1:]:
            inside = list(module.modules())
            if any(m is part for m in self._changed for part in inside):
                break
            if output is not None and sum(m is module for m, _ in calls) == 1 and runs_own_forward(module):
                out.append((module, output))
        return out


def _return_input(*args: Any, **kwargs: Any) -> Any:
    return first_input(args, kwargs)


def _return(output: Any, *_args: Any, **_kwargs: Any) -> Any:
    return output


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in (output if isinstance(output, tuple) else (output,)) if isinstance(x, Tensor)]


def _copied(output: Any) -> Any:
    """Copy a tensor, or a tuple of tensors and Nones; None of anything else, which is not cached."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    if isinstance(output, tuple) and all(x is None or isinstance(x, Tensor) for x in output):
        return tuple(None if x is None else x.detach().clone() for x in output)
    return None


def _layers_below(model: nn.Module, site: MoeSite) -> tuple[nn.Module, ...]:
    try:
        layer = enclosing_layer(model, site)
    except MoeProbeError:
        return ()
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            layers = list(module)
            index = next((i for i, item in enumerate(layers) if item is layer), None)
            if index is not None:
                below = layers[:index]
                return tuple(below) if all(map(runs_own_forward, below)) else ()
    return ()
