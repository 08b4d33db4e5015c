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


@dataclass(frozen=True, eq=False)
class MoeSite:
    """One mixture-of-experts layer of a model: where its router sends tokens to experts.

    Attributes
    ----------
    info : MoeLayer
        What a trace records of this layer.
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
    """One call of a layer, as observed; the tensors are the model's own, to be copied by whoever keeps them.

    Attributes
    ----------
    experts : Tensor of int, shape (T, k)
        Expert ids as the model used them.
    weights : Tensor of float, shape (T, k)
        Gate weights.
    expert_input : Tensor, shape (T, d) or (T, k, d)
        What the experts read; (T, k, d) where each slot reads something else.
    logits : Tensor, shape (T, n_experts), or None
    router_input : Tensor, shape (T, d), or None
    """

    experts: Tensor
    weights: Tensor
    expert_input: Tensor
    logits: Tensor | None = None
    router_input: Tensor | None = None

    def together(self) -> Observation:
        """Return ids and weights on the device of the experts' input: router and experts may be on different ones."""
        device = self.expert_input.device
        return self._replace(experts=self.experts.to(device), weights=self.weights.to(device))


Sink = Callable[[Observation], None]
Watcher = Callable[[Tensor], None]


class MatchedBlock(NamedTuple):
    """Modules of a recognised block, by the adapter that recognised it."""

    block: nn.Module
    router: nn.Module | None
    experts: nn.Module | None
    num_experts: int
    #: 0 where only the model's configuration has it.
    top_k: int = 0
    note: str = ""


class Adapter(ABC):
    """Reads the routing of one kind of block.

    Families implement `match`, `_observe` and `_contributions`; and `_mixture`, `total_module` and `parts` where the
    defaults do not fit.
    """

    name: ClassVar[str]
    #: Which entry of the router's output holds the logits, where the model does not say.
    logits_index: ClassVar[int] = 0
    #: Whether what a slot adds depends on which slot it is, not on its expert and weight alone.
    slots_differ: ClassVar[bool] = False
    #: Whether `_observe` hands over the router's logits and input by itself.
    observes_router: ClassVar[bool] = False

    @abstractmethod
    def match(self, block: Any) -> MatchedBlock | None:
        """Recognise a block that holds router and experts; None where it is something else."""

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        """Register hooks so that every call of the site ends in one ``sink(Observation)``.

        Parameters
        ----------
        site : MoeSite
        sink : callable
            Called with each `Observation`.
        router : bool
            Observe the router's logits and input too.

        Returns
        -------
        list of RemovableHandle

        Raises
        ------
        MoeProbeError
            On a call whose arguments are not understood.
        """
        read_by_router: dict[str, Tensor] = {}

        def emit(seen: Observation) -> None:
            seen = seen._replace(**read_by_router)
            read_by_router.clear()
            sink(_checked(site, seen))

        handles = self._observe(site, emit)
        if router and not self.observes_router and site.router is not None:
            handles.append(_watch_router(site, read_by_router))
        return handles

    def contributions(self, site: MoeSite, seen: Observation, *, everywhere: bool = False) -> Tensor:
        """Compute what each slot adds to the mixture, gate weight included, by running the chosen experts.

        Parameters
        ----------
        site : MoeSite
        seen : Observation
            All ids are within range; slots of weight 0 give zeros.
        everywhere : bool
            All processes that a model is split over make this call.

        Returns
        -------
        Tensor, shape (T, k, d)

        Raises
        ------
        MoeProbeError
            When the experts are split over processes and not all of them make this call.
        """
        if not everywhere and any(hasattr(p, "full_tensor") for part in self.parts(site) for p in part.parameters()):
            raise MoeProbeError(
                f"outputs of single experts of {site.info.name} cannot be computed",
                "the model is split over processes, and each has a part of them",
                "keep no expert outputs, or load it with --device-map auto instead of --tp-plan",
            )
        return self._contributions(site, seen.together())

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        """Register a hook that passes on the sum over slots as the model itself computes it.

        Parameters
        ----------
        site : MoeSite
        watcher : callable
            Called with the sum, shape (T, d), after each call of the site.

        Returns
        -------
        list of RemovableHandle
        """

        def after(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            watcher(self._mixture(site, output[0] if isinstance(output, tuple) else output, (args, kwargs)))

        return [self.total_module(site).register_forward_hook(after, with_kwargs=True)]

    def total_module(self, site: MoeSite) -> nn.Module:
        """Return the module whose output, or the first part of it, is the sum over slots, alone or with more added."""
        experts: nn.Module = experts_of(site)
        return experts

    def parts(self, site: MoeSite) -> list[nn.Module]:
        """List the modules whose parameters decide the routing and the experts' outputs."""
        return [module for module in (site.router, site.experts) if module is not None]

    @abstractmethod
    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        """Register hooks so that every call of the site ends in one ``emit(Observation)``."""

    @abstractmethod
    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        """Compute `contributions`."""

    def _mixture(self, _site: MoeSite, output: Tensor, _called_with: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        """Sum over slots, shape (T, d), from the output of `total_module` and what that was called with."""
        return rows(output)


def rows(x: Tensor) -> Tensor:
    """Flatten batch and sequence: (..., d) to (T, d)."""
    return x.reshape(-1, x.shape[-1])


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a module was called with, whether by position or by name.

    Parameters
    ----------
    args : tuple
    kwargs : dict
        Arguments of the call, as a hook receives them.

    Returns
    -------
    Tensor, shape (..., d)
    """
    x: Tensor = args[0] if args else kwargs["hidden_states"]
    return x


def forward_parameters(module: nn.Module) -> list[inspect.Parameter]:
    """List the parameters of a module's forward as its class writes it (decorators looked through), without self."""
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
    children = (getattr(block, name, None) for name in ("gate", "router"))
    return next((child for child in children if isinstance(child, nn.Module)), None)


def experts_of(site: MoeSite) -> Any:
    """Return the experts module of a site whose adapter needs one.

    Raises
    ------
    MoeProbeError
        When the site has none.
    """
    if site.experts is None:
        raise MoeProbeError(f"{site.info.name} has no experts module", "its adapter does not fit", "report this model")
    return site.experts


def count_experts(experts: nn.Module) -> int:
    """Count the experts of a module: its own number, or the length of its stacked weights (0 if unknown)."""
    for name in ("num_experts", "n_routed_experts", "num_local_experts"):
        value = getattr(experts, name, None)
        if isinstance(value, int) and not getattr(experts, "_is_expert_parallel", False):  # there: those of this process
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
                for one in getattr(hook, "hooks", (hook,)):
                    if getattr(one, "execution_device", None) is not None:
                        return torch.device(one.execution_device)
    return torch.device("meta")


def _checked(site: MoeSite, seen: Observation) -> Observation:
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
        "use a model of a family listed in docs/families.md, or report this one",
    )


def _watch_router(site: MoeSite, pending: dict[str, Tensor]) -> RemovableHandle:
    """Keep the router's logits and input until the experts are called."""

    def after_router(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        logits = output[site.logits_index] if isinstance(output, tuple) else output
        pending.update(logits=rows(logits), router_input=rows(first_input(args, kwargs)))

    assert site.router is not None
    return site.router.register_forward_hook(after_router, with_kwargs=True)
