"""What an adapter is: the few questions that differ between kinds of mixture-of-experts blocks."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import MoeLayer

_INDEX_NAME = re.compile(r"top_?k_ind|router_ind|selected_expert|expert_ind|expert_ids|topk_ids")
_WEIGHT_NAME = re.compile(r"weight|scores|probs|gates")

Sink = Callable[["Observation"], None]
Watcher = Callable[[Tensor], None]


@dataclass(frozen=True, eq=False)
class MoeSite:
    """One place of a model where tokens are sent to experts.

    Attributes
    ----------
    info : MoeLayer
        What a trace says of this place.
    block : nn.Module
        The module that holds router and experts.
    router, experts : nn.Module or None
        None where the family has no such module.
    adapter : str
        Key of `ADAPTERS`.
    logits_index : int
        Which entry of a tuple returned by the router holds its logits.
    """

    info: MoeLayer
    block: nn.Module
    router: nn.Module | None
    experts: nn.Module | None
    adapter: str
    logits_index: int = 0


class Observation(NamedTuple):
    """What one call of a site showed; the tensors are the model's own, to be copied by who keeps them.

    Attributes
    ----------
    experts : Tensor of int, shape (T, k)
        Expert ids as the model used them.
    weights : Tensor of float, shape (T, k)
    expert_input : Tensor
        What the experts read, (T, d); (T, k, d) where each slot reads something else.
    logits : Tensor, shape (T, n), or None
    router_input : Tensor, shape (T, d), or None
    """

    experts: Tensor
    weights: Tensor
    expert_input: Tensor
    logits: Tensor | None = None
    router_input: Tensor | None = None


class Found(NamedTuple):
    """Modules of a recognised block, by the adapter that recognised it."""

    block: nn.Module
    router: nn.Module | None
    experts: nn.Module | None
    num_experts: int
    #: 0 where only the model's configuration knows.
    top_k: int = 0
    note: str = ""


def rows(x: Tensor) -> Tensor:
    """Flatten batch and sequence: (..., d) to (T, d)."""
    return x.reshape(-1, x.shape[-1])


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states a module was called with, whether by position or by name."""
    x: Tensor = args[0] if args else kwargs["hidden_states"]
    return x


def forward_parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Parameters of a module's forward as its class writes it (decorators looked through), without self."""
    try:
        return list(inspect.signature(type(module).forward).parameters.values())[1:]
    except (TypeError, ValueError):  # forwards implemented in C, or replaced by a builtin
        return []


def is_experts_input(module: nn.Module) -> bool:
    """Whether forward reads ``(hidden states, expert ids, gate weights)``, by the names of its parameters."""
    parameters = forward_parameters(module)
    return (
        len(parameters) >= 3
        and bool(_INDEX_NAME.search(parameters[1].name))
        and bool(_WEIGHT_NAME.search(parameters[2].name))
        and all(p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters[3:])
    )


def router_of(block: nn.Module) -> nn.Module | None:
    """Return the router inside a block, by the two names that families give it; None where it has neither."""
    for name in ("gate", "router"):
        child = getattr(block, name, None)
        if isinstance(child, nn.Module):
            return child
    return None


class Adapter(ABC):
    """Reads the routing of one kind of block."""

    name: ClassVar[str]
    #: Which entry of the router's output holds the logits, where the model does not say.
    logits_index: ClassVar[int] = 0
    #: Whether what a slot adds depends on its place, not on its expert and weight alone.
    slots_differ: ClassVar[bool] = False

    @abstractmethod
    def find(self, block: nn.Module) -> Found | None:
        """Recognise a block that holds router and experts; None where it is something else."""

    @abstractmethod
    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        """Hook the site so that every call ends in one ``sink(Observation)``.

        With ``router``, the observation also has the router's logits and input.
        """

    @abstractmethod
    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        """Compute ``w * E(x)`` of every slot, shape (T, k, d), by running the chosen experts.

        Slots with weight 0 give zeros; their ids are within range.
        """

    @abstractmethod
    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        """Hook the site so that the sum over slots that the model itself computed, (T, d), is handed over."""

    def total_module(self, site: MoeSite) -> nn.Module:
        """Module whose output, or the first part of it, is the sum over slots, alone or with more added to it."""
        return experts_of(site)

    def parts(self, site: MoeSite) -> list[nn.Module]:
        """Modules whose parameters decide the routing and the experts' outputs."""
        return [module for module in (site.router, site.experts) if module is not None]


def count_experts(experts: nn.Module) -> int:
    """Number of experts of a module: its own count, or the length of its stacked weights (0 if unknown)."""
    for name in ("num_experts", "n_routed_experts", "num_local_experts"):
        if isinstance(value := getattr(experts, name, None), int):
            return value
    stacked = {p.shape[0] for p in experts.parameters(recurse=False) if p.dim() == 3}
    return stacked.pop() if len(stacked) == 1 else 0


def execution_device(module: nn.Module) -> torch.device:
    """Device on which a module computes; ``meta`` if its weights were never loaded.

    Offloaded weights are on ``meta`` until the hook of the module that owns them fetches them.
    """
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if not parameter.is_meta:
                return parameter.device
            if (hook := getattr(part, "_hf_hook", None)) is not None:
                return torch.device(hook.execution_device)
    return torch.device("meta")


def experts_of(site: MoeSite) -> nn.Module:
    """The experts module of a site whose adapter needs one."""
    if site.experts is None:
        raise MoeProbeError(f"{site.info.name} has no experts module", "its adapter does not fit", "report this model")
    return site.experts


def checked(site: MoeSite, seen: Observation) -> Observation:
    """Refuse what only looks like ids and weights (shapes and types: nothing that waits for the GPU)."""
    ids, weights = seen.experts, seen.weights
    if (
        ids.dim() == 2
        and weights.shape == ids.shape
        and len(seen.expert_input) == len(ids)
        and not ids.is_floating_point()
        and weights.is_floating_point()
    ):
        return seen
    raise MoeProbeError(
        f"the experts of {site.info.name} are called in a way that is not understood",
        f"ids {tuple(ids.shape)} {ids.dtype}, weights {tuple(weights.shape)}, {len(seen.expert_input)} tokens",
        "a model of a family listed in docs/families.md, or report this one",
    )


def watch_router(site: MoeSite, pending: dict[str, Tensor]) -> RemovableHandle:
    """Keep the router's input and logits until the experts are called."""

    def after_router(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        logits = output[site.logits_index] if isinstance(output, tuple) else output
        pending.update(logits=rows(logits), x=rows(first_input(args, kwargs)))

    assert site.router is not None
    return site.router.register_forward_hook(after_router, with_kwargs=True)
