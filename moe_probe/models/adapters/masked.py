"""Blocks whose experts are called with masks or scores of all experts: Switch Transformers, NLLB-MoE and Llama 4."""

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
    execution_device,
    experts_of,
    forward_parameters,
    is_experts_input,
    router_of,
    rows,
)


class SwitchExperts(Adapter):
    """Switch Transformers: a one-hot mask per token, all zero where the expert was over capacity."""

    name = "switch"
    logits_index = 2

    def match(self, block: nn.Module) -> MatchedBlock | None:
        """Recognise a dictionary of experts beside a router with a ``classifier``."""
        experts, router = getattr(block, "experts", None), router_of(block)
        if not (isinstance(experts, nn.ModuleDict) and is_experts_input(experts) and hasattr(router, "classifier")):
            return None
        note = "tokens over an expert's capacity are dropped"
        return MatchedBlock(block, router, experts, count_experts(experts), 1, note)

    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        def before_experts(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x, mask, probability = args
            emit(Observation(mask.argmax(dim=-1), probability * mask.amax(dim=-1), x))

        return [experts_of(site).register_forward_pre_hook(before_experts)]

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        mask = nn.functional.one_hot(seen.experts, site.info.num_experts)
        out: Tensor = experts_of(site).forward(seen.expert_input, mask, seen.weights)
        return out.unsqueeze(1)


class NllbExperts(Adapter):
    """NLLB-MoE: a mask of the first choice and dense gates of both.

    Some versions of transformers run expert 1 for the first choice and expert 0 for the second, whatever
    the router chose. The choice is what is reported; the outputs are those of the experts that ran.
    """

    name = "nllb"
    logits_index = 2
    slots_differ = True

    def match(self, block: nn.Module) -> MatchedBlock | None:
        """Recognise a dictionary of experts that is called with ``router_mask`` and ``router_probs``."""
        experts = getattr(block, "experts", None)
        names = [p.name for p in forward_parameters(experts)] if isinstance(experts, nn.ModuleDict) else []
        if names[1:3] != ["router_mask", "router_probs"] or experts is None:
            return None
        note = "tokens over an expert's capacity are dropped"
        if not self.runs_the_choice(experts):
            note += (
                "; this version of transformers runs experts 1 and 0 for first and second choice "
                "whatever the router chose: ids are its choice, outputs those of the experts that ran"
            )
        return MatchedBlock(block, router_of(block), experts, count_experts(experts), 2, note)

    @staticmethod
    def runs_the_choice(experts: Any) -> bool:
        """Whether a token routed to expert 0 is really sent there (assumed where no weights are loaded)."""
        device = execution_device(experts)
        dtype = next((p.dtype for p in experts.parameters() if p.is_floating_point()), torch.float32)
        if device.type == "meta":
            return True
        first = experts["expert_0"]
        with torch.no_grad():
            x = torch.linspace(-1, 1, first.fc1.in_features, device=device)[None].to(dtype)
            mask = torch.zeros(1, count_experts(experts), dtype=torch.long, device=device)
            mask[:, 0] = 1
            out = experts.forward(x, mask, mask.to(dtype))
            return torch.allclose(out, first(x) * (1 - float(experts.moe_token_dropout)), rtol=1e-3)

    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        def before_experts(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x, mask, gates = args
            second = gates * (1 - mask)
            ids = torch.stack([mask.argmax(dim=-1), second.argmax(dim=-1)], dim=-1)
            emit(Observation(ids, torch.stack([(gates * mask).sum(dim=-1), second.amax(dim=-1)], dim=-1), x))

        return [experts_of(site).register_forward_pre_hook(before_experts)]

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        experts = experts_of(site)
        ids = seen.experts
        if not self.runs_the_choice(experts):
            ids = torch.tensor([1, 0], device=ids.device).expand_as(ids)
        out = seen.expert_input.new_zeros(*ids.shape, seen.expert_input.shape[-1])
        for expert in torch.unique(ids).tolist():
            token, slot = torch.where(ids == expert)
            out[token, slot] = experts[f"expert_{expert}"](seen.expert_input[token])
        return out * seen.weights.unsqueeze(-1) * (1 - float(experts.moe_token_dropout))


class Llama4Experts(Adapter):
    """Llama 4: every expert is given every token, scaled by its score, which is 0 unless it was chosen."""

    name = "scaled-input"
    observes_router = True

    def match(self, block: nn.Module) -> MatchedBlock | None:
        """Recognise experts that read one tensor beside a linear router with a ``top_k``."""
        experts, router = getattr(block, "experts", None), getattr(block, "router", None)
        if not (isinstance(experts, nn.Module) and isinstance(router, nn.Linear) and hasattr(router, "top_k")):
            return None
        if len(forward_parameters(experts)) != 1:
            return None
        top_k: Any = router.top_k
        note = "the gate weight multiplies the expert's input, so its output is not linear in the weight"
        return MatchedBlock(block, router, experts, router.out_features, int(top_k), note)

    def _observe(self, site: MoeSite, emit: Sink) -> list[RemovableHandle]:
        def after_router(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            x, (scores, logits) = rows(args[0]), output
            # The router's own operation on its own tensor: scores may tie once rounded, logits decide.
            ids = logits.topk(site.info.top_k, dim=1).indices
            emit(Observation(ids, scores.gather(1, ids), x, logits, x))

        assert site.router is not None
        return [site.router.register_forward_hook(after_router)]

    def _contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        n_tokens, k = seen.experts.shape
        d = seen.expert_input.shape[-1]
        token = torch.arange(n_tokens, device=seen.experts.device)[:, None].expand(-1, k)
        dense = seen.expert_input.new_zeros(site.info.num_experts, n_tokens, d)
        scaled = seen.expert_input[:, None] * seen.weights.to(dense.dtype)[..., None]
        dense.index_put_((seen.experts, token), scaled, accumulate=True)
        out: Tensor = experts_of(site).forward(dense.view(-1, d)).view(site.info.num_experts, n_tokens, d)
        return out[seen.experts, token]

    def _mixture(self, site: MoeSite, output: Tensor, _called_with: object) -> Tensor:
        return output.reshape(site.info.num_experts, -1, output.shape[-1]).sum(dim=0)
