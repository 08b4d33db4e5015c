"""Adapters for blocks without an experts module: JetMoE's sorted kernels and Doge's product keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_probe.models.adapters.base import (
    Adapter,
    Found,
    MoeSite,
    Observation,
    Sink,
    Watcher,
    checked,
    first_input,
    rows,
)


def _is_sorted_block(module: nn.Module | None) -> bool:
    """Whether a module routes by sorting: a gating router and two stacks of expert matrices."""
    names = ("router", "input_linear", "output_linear")
    return (
        module is not None
        and all(isinstance(getattr(module, name, None), nn.Module) for name in names)
        and all(hasattr(module.router, name) for name in ("layer", "top_k", "num_experts"))
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


def _grouped(module: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
    """Send row i of x, (n, d), through the stacked matrix of expert ``ids[i]``."""
    order = ids.argsort(stable=True)
    sizes = torch.bincount(ids, minlength=module.num_experts).tolist()  # type: ignore[arg-type]
    return _unsorted(module.forward(x[order], sizes), order)


class SortedExperts(Adapter):
    """JetMoE's feed-forward block."""

    name = "sorted"

    def find(self, block: nn.Module) -> Found | None:
        if not _is_sorted_block(block) or hasattr(block, "reduce"):
            return None
        router = block.router
        return Found(block, router, None, int(router.num_experts), int(router.top_k))  # type: ignore[union-attr, arg-type]

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        def after_router(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            ids, weights, logits = _routing(output, k=site.info.top_k)
            sink(checked(site, Observation(ids, weights, args[0], logits, args[0])))

        assert site.router is not None
        return [site.router.register_forward_hook(after_router)]

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        n_tokens, k = seen.experts.shape
        ids, block = seen.experts.flatten(), site.block
        hidden = _grouped(block.input_linear, seen.expert_input.repeat_interleave(k, dim=0), ids)  # type: ignore[arg-type]
        gate, up = hidden.chunk(2, dim=-1)
        out = _grouped(block.output_linear, block.activation(gate) * up, ids)  # type: ignore[operator, arg-type]
        return out.view(n_tokens, k, -1) * seen.weights.unsqueeze(-1)

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        return [site.block.register_forward_hook(lambda m, _a, output: watcher(rows(output - m.bias)))]

    def total_module(self, site: MoeSite) -> nn.Module:
        return site.block

    def parts(self, site: MoeSite) -> list[nn.Module]:
        return [site.block.router, site.block.input_linear, site.block.output_linear]  # type: ignore[list-item]


class SortedAttention(Adapter):
    """JetMoE's attention: experts are pairs of query and output projections; each slot has its own input."""

    name = "sorted-attention"

    def find(self, block: nn.Module) -> Found | None:
        experts = getattr(block, "experts", None)
        if not _is_sorted_block(experts) or not hasattr(experts, "reduce"):
            return None
        router = experts.router  # type: ignore[union-attr]
        note = "experts are attention heads (query and output projections), not feed-forward networks"
        return Found(block, router, experts, int(router.num_experts), int(router.top_k), note)

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        pending: list[tuple[Tensor, Tensor, Any]] = []

        def after_router(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            pending[:] = [(args[0], output[0], output)]

        def before_output(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x, order, output = pending.pop()
            ids, weights, logits = _routing(output, k=site.info.top_k)
            slots = _unsorted(args[0], order).view(*ids.shape, -1)
            sink(checked(site, Observation(ids, weights, slots, logits, x)))

        assert site.router is not None
        output_linear: nn.Module = site.experts.output_linear  # type: ignore[union-attr, assignment]
        return [
            site.router.register_forward_hook(after_router),
            output_linear.register_forward_pre_hook(before_output),
        ]

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        output_linear: nn.Module = site.experts.output_linear  # type: ignore[union-attr, assignment]
        out = _grouped(output_linear, rows(seen.expert_input), seen.experts.flatten())
        return out.view(*seen.experts.shape, -1) * seen.weights.unsqueeze(-1)

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        bias: Tensor = site.experts.bias  # type: ignore[union-attr, assignment]
        return [site.block.register_forward_hook(lambda _m, _a, output: watcher(rows(output[0] - bias)))]

    def total_module(self, site: MoeSite) -> nn.Module:
        return site.block

    def parts(self, site: MoeSite) -> list[nn.Module]:
        return [site.experts] if site.experts is not None else []


class ProductKeys(Adapter):
    """Doge: experts are pairs of embedding rows, found by the sum of two keys (arXiv:2407.04153)."""

    name = "product-keys"

    def find(self, block: nn.Module) -> Found | None:
        if not all(isinstance(getattr(block, name, None), nn.Module) for name in ("router_gate", "down_embed", "up_embed")):
            return None
        note = (
            "an expert is one pair of vectors, beside a dense network; "
            "in a full forward its choice depends on the other tokens of the batch"
        )
        return Found(block, block.router_gate, None, int(block.num_experts), int(block.top_k), note)  # type: ignore[arg-type]

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        block, pending = site.block, {}
        n_keys = int(block.num_keys)  # type: ignore[arg-type]

        def before_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            pending["x"] = rows(first_input(args, kwargs))

        def after_gate(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            pending["keys"] = output.view(2, -1, n_keys)

        def before_lookup(_module: nn.Module, args: tuple[Any, ...]) -> None:
            ids, x, (first, second) = args[0], pending.pop("x"), pending.pop("keys")
            scores = first.gather(1, ids // n_keys) + second.gather(1, ids % n_keys)
            weights = scores.softmax(dim=-1)
            if block.norm_topk_prob:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            sink(checked(site, Observation(ids, weights, x, torch.cat([first, second], dim=-1), x)))

        down: nn.Module = block.down_embed  # type: ignore[assignment]
        gate: nn.Module = block.router_gate  # type: ignore[assignment]
        return [
            block.register_forward_pre_hook(before_block, with_kwargs=True),
            gate.register_forward_hook(after_gate),
            down.register_forward_pre_hook(before_lookup),
        ]

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        block: Any = site.block
        inner = torch.einsum("tkd,td->tk", block.down_embed.forward(seen.experts), seen.expert_input)
        return (block.act_fn(inner) * seen.weights)[..., None] * block.up_embed.forward(seen.experts)

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        def after(m: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = first_input(args, kwargs)
            shared = m.down_proj(m.act_fn(m.gate_proj(x)) * m.up_proj(x))
            watcher(rows(output[0] - shared))

        return [site.block.register_forward_hook(after, with_kwargs=True)]

    def total_module(self, site: MoeSite) -> nn.Module:
        return site.block

    def parts(self, site: MoeSite) -> list[nn.Module]:
        return [site.block.router_gate, site.block.down_embed, site.block.up_embed]  # type: ignore[list-item]
