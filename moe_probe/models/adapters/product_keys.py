"""Doge: experts are pairs of embedding rows, found by the sum of two keys (He 2024, arXiv:2407.04153)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_probe.models.adapters.base import Adapter, MatchedBlock, MoeSite, Observation, Sink, first_input, rows


class ProductKeys(Adapter):
    """Doge's block, which has a dense network beside the experts."""

    name = "product-keys"
    observes_router = True

    def match(self, block: Any) -> MatchedBlock | None:
        """Recognise a block with a gate of keys and two embeddings."""
        if not all(isinstance(getattr(block, name, None), nn.Module) for name in ("router_gate", "down_embed", "up_embed")):
            return None
        note = (
            "an expert is one pair of vectors, beside a dense network; "
            "in a full forward its choice depends on the other tokens of the batch"
        )
        return MatchedBlock(block, block.router_gate, None, int(block.num_experts), int(block.top_k), note)

    def total_module(self, site: MoeSite) -> nn.Module:
        """Return the block, which adds the dense network's output to the sum."""
        return site.block

    def parts(self, site: MoeSite) -> list[nn.Module]:
        """List the gate of keys and both embeddings."""
        block: Any = site.block
        return [block.router_gate, block.down_embed, block.up_embed]

    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        block: Any = site.block
        n_keys = int(block.num_keys)
        pending: dict[str, Tensor] = {}

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
            emit(Observation(ids, weights, x, torch.cat([first, second], dim=-1), x))

        return [
            block.register_forward_pre_hook(before_block, with_kwargs=True),
            block.router_gate.register_forward_hook(after_gate),
            block.down_embed.register_forward_pre_hook(before_lookup),
        ]

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        block: Any = site.block
        inner = torch.einsum("tkd,td->tk", block.down_embed.forward(seen.experts), seen.expert_input)
        out: Tensor = (block.act_fn(inner) * seen.weights)[..., None] * block.up_embed.forward(seen.experts)
        return out

    def _mixture(self, site: MoeSite, output: Tensor, called_with: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        block: Any = site.block
        x = first_input(*called_with)
        return rows(output - block.down_proj(block.act_fn(block.gate_proj(x)) * block.up_proj(x)))
