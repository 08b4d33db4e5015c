"""Run the layers below an intervention once, not again for every unit that is knocked out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from moe_probe.errors import MoeProbeError
from moe_probe.models.adapter_base import MoeSite
from moe_probe.models.capture import enclosing_layer


class PrefixCache:
    """Remembers the output of the layer below a site, for every batch by its key.

    From the second time on, the layers below hand their input through and the last of them hands over what it gave the
    first time. That is right only where nothing else passes between layers; whoever uses it has to compare one pass with
    a plain one (`moe_probe.causes` does, and goes without the cache where they differ).

    Parameters
    ----------
    model : nn.Module
    site : MoeSite
        What is changed lies here or above.
    max_bytes : int
        Beyond it, further batches are computed as usual.

    Attributes
    ----------
    below : tuple of nn.Module
        Layers that are left out; none where the site is in the first one or not in a numbered layer.
    """

    def __init__(self, model: nn.Module, site: MoeSite, *, max_bytes: int = 2**30) -> None:
        self.below = _layers_below(model, site)
        self._kept: dict[Hashable, Any] = {}
        self._room = max_bytes

    @contextmanager
    def using(self, key: Hashable) -> Iterator[None]:
        """Run the model on the batch of this key inside the ``with`` block."""
        if not self.below:
            yield
            return
        if key in self._kept:
            replaced: list[tuple[nn.Module, Callable[..., Any]]] = [(m, _hand_through) for m in self.below[:-1]]
            replaced.append((self.below[-1], lambda *args, **kwargs: self._kept[key]))
            for module, forward in replaced:
                module.forward = forward  # type: ignore[method-assign]  # an attribute of this object, removed below
            try:
                yield
            finally:
                for module, _ in replaced:
                    del module.forward
            return
        handle = self.below[-1].register_forward_hook(lambda _m, _a, output: self._keep(key, output))
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, key: Hashable, output: Any) -> None:
        if isinstance(output, Tensor) and self._room >= output.nbytes:
            self._room -= output.nbytes
            self._kept[key] = output.detach().clone()


def _hand_through(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _layers_below(model: nn.Module, site: MoeSite) -> tuple[nn.Module, ...]:
    try:
        layer = enclosing_layer(model, site)
    except MoeProbeError:
        return ()
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            layers = list(module)
            if any(item is layer for item in layers):
                below = layers[: next(i for i, item in enumerate(layers) if item is layer)]
                return tuple(below) if all("forward" not in vars(item) for item in below) else ()
    return ()
