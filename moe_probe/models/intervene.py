"""Ablate experts, or steer towards them, while a model runs; weights are never written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.text import some_of
from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import MoeSite, Observation
from moe_probe.models.hooks import hooked, replaced_forwards
from moe_probe.models.parallel import refuse_split
from moe_probe.models.settings import HOW

#: ``mask``: the router cannot choose the experts; the next best replace them, and the model renormalises gate weights as
#: usual. ``zero``: they are chosen, and add nothing. ``mean``: they add their mean output. ``steer``: `boost` is added to


@dataclass(frozen=True, eq=False)
class Intervention:
    """What is done to some experts of one layer.

    Attributes
    ----------
    experts : tuple of int
        Expert ids.
    how : {"mask", "zero", "mean", "steer"}
    boost : float
        Added to the experts' logits (steer only); may be negative.
    means : Tensor, shape (n_experts, d), optional
        Mean output of each expert at gate weight 1 (mean only), from `mean_outputs`.

    Raises
    ------
    UsageError
        For an unknown intervention, or ``mean`` without means.
    """

    experts: tuple[int, ...]
    how: str = "mask"
    boost: float = 0.0
    means: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the intervention exists and has what it needs."""
        if self.how not in HOW:
            raise UsageError(
                f"unknown intervention '{self.how}'", did_you_mean(self.how, list(HOW)), f"use one of {', '.join(HOW)}"
            )
        if self.how == "mean" and self.means is None:
            raise UsageError(
                "the experts' mean outputs are missing", "mean replaces outputs by them", "use mean_outputs(site)"
            )


@contextmanager
def intervened(site: MoeSite, change: Intervention) -> Iterator[None]:
    """Change what some experts do, inside the ``with`` block only.

    Nothing is written to parameters or buffers; hooks are gone when the block is left, also by an exception.

    Parameters
    ----------
    site : MoeSite
    change : Intervention

    Yields
    ------
    None

    Raises
    ------
    MoeProbeError
        When an expert does not exist, masking would leave fewer experts than a token chooses, the model is split over
        processes, or the family's router does not choose by logits of its own (but by a hash of the token, or by products
        of keys): zero and mean work there too.
    """
    n = site.info.num_experts
    wrong = [e for e in change.experts if not 0 <= e < n]
    if wrong or not change.experts:
        raise MoeProbeError(
            f"layer {site.info.layer} has no expert {some_of(wrong) if wrong else '(none was named)'}",
            f"it has {n}",
            f"name experts from 0 to {n - 1}",
        )
    refuse_split(site.block, "interventions")
    if change.how == "mask" and n - len(set(change.experts)) < site.info.top_k:
        raise MoeProbeError(
            f"{len(set(change.experts))} of {n} experts cannot be masked",
            f"every token chooses {site.info.top_k}",
            "mask fewer experts, or use zero",
        )
    with _biased(site, change) if change.how in ("mask", "steer") else hooked(_replace_outputs(site, change)):
        yield


class _Bias(TorchFunctionMode):
    """While a router computes, change its logits: the first product that has one column per expert.

    Further columns may follow: those of shared experts, or of a class that means "skip".
    """

    _PRODUCTS = frozenset(
        (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.addmm)
    )

    def __init__(self, site: MoeSite, change: Intervention) -> None:
        super().__init__()
        n = site.info.num_experts
        self.widths, self.change, self.applied = range(n, n + max(1, site.info.shared_experts) + 1), change, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.applied or func not in self._PRODUCTS or out.shape[-1] not in self.widths or not out.is_floating_point():
            return out
        self.applied = True
        with torch._C.DisableTorchFunction():
            out, experts = out.clone(), list(self.change.experts)
            if self.change.how == "mask":  # a quarter of the lowest number: exp gives 0, and sums of a few stay finite
                out[..., experts] = torch.finfo(out.dtype).min / 4
            else:
                out[..., experts] += self.change.boost
        return out


@contextmanager
def _biased(site: MoeSite, change: Intervention) -> Iterator[None]:
    router = site.router
    if router is None:
        raise MoeProbeError(f"{site.info.name} has no router module", "its logits cannot be changed", "use zero or mean")
    plain: Callable[..., Any] = router.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Bias(site, change) as mode:
            out = plain(*args, **kwargs)
        if not mode.applied:
            raise MoeProbeError(
                f"the router of {site.info.name} has no logit for every expert",
                "nothing can be added to it",
                "use zero or mean",
            )
        return out

    def check(seen: Observation) -> None:
        if bool(_changed_slots(seen, change).any()):
            raise MoeProbeError(
                f"the router of {site.info.name} chose a masked expert",
                "its choice does not follow its logits",
                "use zero or mean",
            )

    handles = ADAPTERS[site.adapter].attach(site, check) if change.how == "mask" else []
    with replaced_forwards([(router, forward)]), hooked(handles):
        yield


def _replace_outputs(site: MoeSite, change: Intervention) -> list[RemovableHandle]:
    """Take the experts' outputs out of the sum over slots, and put their means in if asked."""
    adapter = ADAPTERS[site.adapter]
    pending: list[Tensor] = []

    def before(seen: Observation) -> None:
        pending[:] = [_difference(site, seen, change)]

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        delta, new = pending.pop(), hidden.clone()
        # there are more rows than tokens where a family stores its experts' outputs one after the other, and adds them later
        new.view(-1, hidden.shape[-1])[: len(delta)] += delta.to(hidden)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return [*adapter.attach(site, before), adapter.total_module(site).register_forward_hook(after)]


def _changed_slots(seen: Observation, change: Intervention) -> Tensor:
    """Mask the slots that chose one of the experts with a gate weight other than 0, shape (T, k)."""
    return torch.isin(seen.experts, torch.tensor(change.experts, device=seen.experts.device)) & (seen.weights != 0)


def _difference(site: MoeSite, seen: Observation, change: Intervention) -> Tensor:
    """Compute what is to be added to the sum over slots, shape (T, d)."""
    seen = seen.together()
    delta = seen.expert_input.new_zeros(len(seen.experts), seen.expert_input.shape[-1])
    token, slot = _changed_slots(seen, change).nonzero(as_tuple=True)
    if len(token) == 0:
        return delta
    outputs = _slot_outputs(site, seen, token, slot)
    delta.index_add_(0, token, -outputs.to(delta))
    if change.means is not None:
        means = change.means.to(delta)[seen.experts[token, slot].long()]
        delta.index_add_(0, token, means * seen.weights[token, slot].to(delta)[:, None])
    return delta


def _slot_outputs(site: MoeSite, seen: Observation, token: Tensor, slot: Tensor) -> Tensor:
    """Compute the weighted outputs of n single slots, (token, slot) each, shape (n, d)."""
    adapter = ADAPTERS[site.adapter]
    if adapter.slots_differ:
        only = torch.zeros_like(seen.weights[token])
        only[torch.arange(len(token)), slot] = seen.weights[token, slot]
        return adapter.contributions(site, Observation(seen.experts[token], only, seen.expert_input[token])).sum(1)
    x = seen.expert_input[token] if seen.expert_input.dim() == 2 else seen.expert_input[token, slot][:, None]
    ids, weights = seen.experts[token, slot][:, None], seen.weights[token, slot][:, None]
    return adapter.contributions(site, Observation(ids, weights, x))[:, 0]


@contextmanager
def mean_outputs(site: MoeSite) -> Iterator[Callable[[], Tensor]]:
    """Collect the mean output of every expert at gate weight 1, over the forward passes inside the ``with`` block.

    Yields
    ------
    callable
        Returns the means, float32 of shape (n_experts, d); zeros for experts that were not chosen.
    """
    total: Tensor | None = None
    weight = torch.zeros(site.info.num_experts, dtype=torch.float64)

    def add(seen: Observation) -> None:
        nonlocal total
        seen = seen.together()
        token, slot = ((seen.weights != 0) & (seen.experts < site.info.num_experts)).nonzero(as_tuple=True)
        outputs = _slot_outputs(site, seen, token, slot).double().cpu()
        if total is None:
            total = torch.zeros(site.info.num_experts, outputs.shape[-1], dtype=torch.float64)
        ids = seen.experts[token, slot].long().cpu()
        total.index_add_(0, ids, outputs)
        weight.index_add_(0, ids, seen.weights[token, slot].double().cpu())

    def means() -> Tensor:
        if total is None:
            raise MoeProbeError("no expert's output was recorded", "the model did not run", "run it inside the with block")
        return (total / weight.clamp_min(1e-12)[:, None]).float()

    refuse_split(site.block, "mean outputs of experts")
    with hooked(ADAPTERS[site.adapter].attach(site, add)):
        yield means
