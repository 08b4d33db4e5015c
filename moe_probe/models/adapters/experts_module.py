"""Blocks with one experts module that is called with hidden states, expert ids and gate weights: nearly every family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_probe.models.adapters.base import (
    Adapter,
    MatchedBlock,
    MoeSite,
    Observation,
    Sink,
    count_experts,
    experts_of,
    forward_parameters,
    is_experts_input,
    router_of,
    rows,
)


class ExpertsInput(Adapter):
    """The common form: one experts module that is given hidden states, ids and weights."""

    name = "experts-input"

    def match(self, block: nn.Module) -> MatchedBlock | None:
        """Recognise a block by a child whose forward reads ids and weights."""
        experts = next((child for child in block.children() if is_experts_input(child)), None)
        if experts is None or isinstance(experts, nn.ModuleDict):
            return None
        return MatchedBlock(block, router_of(block), experts, count_experts(experts))

    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        experts = experts_of(site)
        names = [p.name for p in forward_parameters(experts)[:3]]

        def before_experts(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, ids, weights = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
            emit(Observation(ids, weights, rows(x)))

        return [experts.register_forward_pre_hook(before_experts, with_kwargs=True)]

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        return _run_slots(experts_of(site), seen, n_slots=1)


class IdentityExperts(ExpertsInput):
    """LongCat-Flash: ids from ``num_routed_experts`` on are experts that return their input unchanged."""

    name = "identity-experts"

    def match(self, block: nn.Module) -> MatchedBlock | None:
        """Recognise the common form with an ``identity_expert``."""
        matched = super().match(block)
        experts: Any = matched.experts if matched else None
        if matched is None or not isinstance(getattr(experts, "identity_expert", None), nn.Module):
            return None
        routed, total = int(experts.num_routed_experts), int(experts.total_experts)
        note = f"experts {routed} to {total - 1} return their input unchanged" if total > routed else ""
        return matched._replace(num_experts=total, note=note)

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        # With a single slot the module squeezes the wrong axis; a second slot of weight 0 changes nothing.
        return _run_slots(experts_of(site), seen, n_slots=2)


def _run_slots(experts: nn.Module, seen: Observation, *, n_slots: int) -> Tensor:
    """Run chosen experts one by one through the module's own forward: right for every weight layout.

    Every token is repeated once per slot and sent to that one expert with weight 1. Returns outputs times their gate
    weights, shape (T, k, d).
    """
    n_tokens, k = seen.experts.shape
    ids = seen.experts.reshape(-1, 1)
    ones = torch.zeros(len(ids), n_slots, dtype=seen.weights.dtype, device=seen.weights.device)
    ones[:, 0] = 1
    # .forward, not a call: hooks on the module must not see this pass.
    out = experts.forward(seen.expert_input.repeat_interleave(k, dim=0), ids.expand(-1, n_slots).contiguous(), ones)
    return rows(out).view(n_tokens, k, -1) * seen.weights.to(out.device).unsqueeze(-1)
