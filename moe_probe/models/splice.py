"""Replace activations while the model runs, at the sites that SAEs read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.models.adapters.base import MoeSite, first_input, rows
from moe_probe.models.capture import enclosing_layer
from moe_probe.models.hooks import hooked
from moe_probe.models.parallel import refuse_split

Replace = Callable[[Tensor], Tensor]


@contextmanager
def spliced(model: nn.Module, site: MoeSite, hook: str, replace: Replace) -> Iterator[None]:
    """Replace the activations at a site by a function of them, inside the ``with`` block only.

    Weights are untouched, and the hooks are gone when the block is left, also by an exception.

    Parameters
    ----------
    model : nn.Module
    site : MoeSite
    hook : {"router_input", "expert_output", "residual"}
        What router and experts read (and the shared experts, where the block has any: it is the block's input);
        what the selected experts add; the residual stream after the layer.
    replace : callable
        Maps activations, shape (n_tokens, d), to others of the same shape.

    Yields
    ------
    None

    Raises
    ------
    MoeProbeError
        When the family has no such site: its router does not read the block's input, or its experts are
        no module of their own; or when the model is split over processes.
    """
    refuse_split(site.block, "spliced activations")
    with hooked(_HOOKS[hook](model, site, replace)):
        yield


def _replaced(x: Tensor, replace: Replace) -> Tensor:
    return replace(rows(x)).to(x.dtype).reshape(x.shape)


def _residual(model: nn.Module, site: MoeSite, replace: Replace) -> list[Any]:
    def swap(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (_replaced(output[0], replace), *output[1:])
        return _replaced(output, replace)

    return [enclosing_layer(model, site).register_forward_hook(swap)]


def _expert_output(_model: nn.Module, site: MoeSite, replace: Replace) -> list[Any]:
    if site.experts is None or site.adapter != "experts-input":
        raise MoeProbeError(
            f"what the experts of {site.info.name} add cannot be replaced",
            "they are not one module whose output is their weighted sum",
            "use the router input or the residual stream",
        )

    def swap(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return _replaced(output, replace)

    return [site.experts.register_forward_hook(swap)]


def _router_input(_model: nn.Module, site: MoeSite, replace: Replace) -> list[Any]:
    seen: list[Tensor] = []

    def swap(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        new = _replaced(first_input(args, kwargs), replace)
        seen[:] = [new]
        if args:
            return (new, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": new}

    def check_arrival(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = rows(first_input(args, kwargs))
        if not seen or given.shape != rows(seen[0]).shape or not torch.equal(given, rows(seen[0]).to(given.device)):
            raise MoeProbeError(
                f"the router of {site.info.name} reads something else than its block is given",
                "a reconstruction of the block's input would not reach it",
                "use the residual stream",
            )

    if site.router is None:
        raise MoeProbeError(
            f"{site.info.name} has no router module", "its input cannot be replaced", "use the residual stream"
        )
    return [
        site.block.register_forward_pre_hook(swap, with_kwargs=True),
        site.router.register_forward_pre_hook(check_arrival, with_kwargs=True),
    ]


_HOOKS: dict[str, Callable[[nn.Module, MoeSite, Replace], list[Any]]] = {
    "router_input": _router_input,
    "expert_output": _expert_output,
    "residual": _residual,
}
