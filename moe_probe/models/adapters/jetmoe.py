"""JetMoE: experts are stacked matrices of kernels that read tokens sorted by expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_probe.models.adapters.base import Adapter, MatchedBlock, MoeSite, Observation, Sink, experts_of, rows


class SortedExperts(Adapter):
    """JetMoE's feed-forward block."""

    name = "sorted"
    observes_router = True

    def match(self, block: Any) -> MatchedBlock | None:
        """Recognise a block with a gating router and two stacks of matrices that is not attention."""
        if not _is_sorted_block(block) or hasattr(block, "reduce"):
            return None
        return MatchedBlock(block, block.router, None, int(block.router.num_experts), int(block.router.top_k))

    def total_module(self, site: MoeSite) -> nn.Module:
        """Return the block, which adds its bias to the sum."""
        return site.block

    def parts(self, site: MoeSite) -> list[nn.Module]:
        """List router and both stacks of matrices."""
        block: Any = site.block
        return [block.router, block.input_linear, block.output_linear]

    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        def after_router(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            ids, weights, logits = _routing(output, k=site.info.top_k)
            emit(Observation(ids, weights, args[0], logits, args[0]))

        assert site.router is not None
        return [site.router.register_forward_hook(after_router)]

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        n_tokens, k = seen.experts.shape
        ids = seen.experts.flatten()
        block: Any = site.block
        gate, up = _grouped(block.input_linear, seen.expert_input.repeat_interleave(k, dim=0), ids).chunk(2, dim=-1)
        out = _grouped(block.output_linear, block.activation(gate) * up, ids)
        return out.view(n_tokens, k, -1) * seen.weights.unsqueeze(-1)

    def _mixture(self, site: MoeSite, output: Tensor, _called_with: object) -> Tensor:
        block: Any = site.block
        return rows(output - block.bias)


class SortedAttention(Adapter):
    """JetMoE's attention: experts are pairs of query and output projections; each slot has its own input."""

    name = "sorted-attention"
    observes_router = True

    def match(self, block: Any) -> MatchedBlock | None:
        """Recognise a block whose ``experts`` route by sorting and can ``reduce``."""
        experts: Any = getattr(block, "experts", None)
        if not _is_sorted_block(experts) or not hasattr(experts, "reduce"):
            return None
        router = experts.router
        note = "experts are attention heads (query and output projections), not feed-forward networks"
        return MatchedBlock(block, router, experts, int(router.num_experts), int(router.top_k), note)

    def total_module(self, site: MoeSite) -> nn.Module:
        """Return the block, which adds the experts' bias to the sum."""
        return site.block

    def parts(self, site: MoeSite) -> list[nn.Module]:
        """List the experts, which hold the router."""
        return [experts_of(site)]

    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        pending: list[tuple[Tensor, Any]] = []

        def after_router(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            pending[:] = [(args[0], output)]

        def before_output(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x, output = pending.pop()
            ids, weights, logits = _routing(output, k=site.info.top_k)
            slots = _unsorted(args[0], output[0]).view(*ids.shape, -1)
            emit(Observation(ids, weights, slots, logits, x))

        assert site.router is not None
        return [
            site.router.register_forward_hook(after_router),
            experts_of(site).output_linear.register_forward_pre_hook(before_output),
        ]

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        out = _grouped(experts_of(site).output_linear, rows(seen.expert_input), seen.experts.flatten())
        return out.view(*seen.experts.shape, -1) * seen.weights.unsqueeze(-1)

    def _mixture(self, site: MoeSite, output: Tensor, _called_with: object) -> Tensor:
        return rows(output - experts_of(site).bias)


def _is_sorted_block(module: Any) -> bool:
    """Whether a module routes by sorting: a gating router and two stacks of expert matrices."""
    names = ("router", "input_linear", "output_linear")
    return all(isinstance(getattr(module, name, None), nn.Module) for name in names) and all(
        hasattr(module.router, name) for name in ("layer", "top_k", "num_experts")
    )


def _unsorted(values: Tensor, order: Tensor) -> Tensor:
    """Undo a sort: row i of the result's flat form is the value that was sorted from i."""
    out = torch.empty_like(values)
    out[order] = values
    return out


def _routing(output: Any, *, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and weights (T, k) and the logits from what the gating module returns.

    It returns the sort order of the flat (token, slot) pairs by expert, the gates in that order and the
    number of pairs of each expert: the ids follow from these, without choosing again from the logits.
    """
    order, _, gates, sizes, logits = output
    counts = torch.as_tensor(sizes, device=order.device)
    sorted_ids = torch.repeat_interleave(torch.arange(len(sizes), device=order.device), counts, output_size=len(order))
    return _unsorted(sorted_ids, order).view(-1, k), _unsorted(gates, order).view(-1, k), logits


def _grouped(module: Any, x: Tensor, ids: Tensor) -> Tensor:
    """Send row i of x, (n, d), through the stacked matrix of expert ``ids[i]``."""
    order = ids.argsort(stable=True)
    sizes = torch.bincount(ids, minlength=module.num_experts).tolist()
    return _unsorted(module.forward(x[order], sizes), order)
