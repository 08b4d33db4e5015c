"""How to read routing off a block: one adapter for nearly every family, one class for each exception.

In transformers 5 the experts of a block are one module that is called with
``(hidden_states, top_k_index, top_k_weights)``; a pre-hook on it sees what was really executed, after
biases, groups, hashing and capacity. Five families are written otherwise and have an adapter below.
An adapter recognises its blocks by their structure, not by class name, so that renamed copies of a
family work too; whether it understood them is what `moe_probe.models.self_check` proves.
"""

from __future__ import annotations

from types import MappingProxyType
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
    count_experts,
    execution_device,
    experts_of,
    forward_parameters,
    is_experts_input,
    router_of,
    rows,
    watch_router,
)
from moe_probe.models.adapters.jetmoe import ProductKeys, SortedAttention, SortedExperts


class ExpertsInput(Adapter):
    """The common form: one experts module that is given hidden states, ids and weights."""

    name = "experts-input"

    def find(self, block: nn.Module) -> Found | None:
        experts = next((child for child in block.children() if is_experts_input(child)), None)
        if experts is None or isinstance(experts, nn.ModuleDict):
            return None
        return Found(block, router_of(block), experts, count_experts(experts))

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        experts, names = experts_of(site), [p.name for p in forward_parameters(experts_of(site))[:3]]
        pending: dict[str, Tensor] = {}

        def before_experts(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, ids, weights = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
            sink(
                checked(
                    site,
                    Observation(ids, weights, rows(x), pending.pop("logits", None), pending.pop("x", None)),
                )
            )

        handles = [experts.register_forward_pre_hook(before_experts, with_kwargs=True)]
        if router and site.router is not None:
            handles.append(watch_router(site, pending))
        return handles

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        return probe(experts_of(site), seen, slots=1)

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            watcher(rows(output[0] if isinstance(output, tuple) else output))

        return [experts_of(site).register_forward_hook(after)]


class IdentityExperts(ExpertsInput):
    """LongCat-Flash: ids from ``num_routed_experts`` on are experts that return their input unchanged."""

    name = "identity-experts"

    def find(self, block: nn.Module) -> Found | None:
        found = super().find(block)
        if found is None or not isinstance(getattr(found.experts, "identity_expert", None), nn.Module):
            return None
        routed, total = int(found.experts.num_routed_experts), int(found.experts.total_experts)  # type: ignore[union-attr, arg-type]
        note = f"experts {routed} to {total - 1} return their input unchanged" if total > routed else ""
        return found._replace(num_experts=total, note=note)

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        # With a single slot the module squeezes the wrong axis; a second slot of weight 0 changes nothing.
        return probe(experts_of(site), seen, slots=2)


def probe(experts: nn.Module, seen: Observation, *, slots: int) -> Tensor:
    """Run chosen experts one by one through the module's own forward: right for every weight layout.

    Every token is repeated once per slot and sent to that one expert with weight 1.

    Returns
    -------
    Tensor, shape (T, k, d)
        Outputs times their gate weights.
    """
    n_tokens, k = seen.experts.shape
    ids = seen.experts.reshape(-1, 1)
    ones = torch.zeros(len(ids), slots, dtype=seen.weights.dtype, device=seen.weights.device)
    ones[:, 0] = 1
    # .forward, not a call: hooks on the module must not see this pass.
    out = experts.forward(seen.expert_input.repeat_interleave(k, dim=0), ids.expand(-1, slots).contiguous(), ones)
    return rows(out).view(n_tokens, k, -1) * seen.weights.unsqueeze(-1)


class SwitchExperts(Adapter):
    """Switch Transformers: a one-hot mask per token, all zero where the expert was over capacity."""

    name = "switch"
    logits_index = 2

    def find(self, block: nn.Module) -> Found | None:
        experts, router = getattr(block, "experts", None), router_of(block)
        if not (isinstance(experts, nn.ModuleDict) and is_experts_input(experts) and hasattr(router, "classifier")):
            return None
        return Found(block, router, experts, count_experts(experts), 1, "tokens over an expert's capacity are dropped")

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        pending: dict[str, Tensor] = {}

        def before_experts(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x, mask, probability = args
            weights = probability * mask.amax(dim=-1)
            seen = Observation(mask.argmax(dim=-1), weights, x, pending.pop("logits", None), pending.pop("x", None))
            sink(checked(site, seen))

        handles = [experts_of(site).register_forward_pre_hook(before_experts)]
        return [*handles, watch_router(site, pending)] if router else handles

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        mask = nn.functional.one_hot(seen.experts, site.info.num_experts)
        return experts_of(site).forward(seen.expert_input, mask, seen.weights).unsqueeze(1)

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        return [experts_of(site).register_forward_hook(lambda _m, _a, output: watcher(output))]


class NllbExperts(Adapter):
    """NLLB-MoE: a mask of the first choice and dense gates of both.

    Some versions of transformers run expert 1 for the first choice and expert 0 for the second, whatever
    the router chose. The choice is what is reported; the outputs are those of the experts that ran.
    """

    name = "nllb"
    logits_index = 2
    slots_differ = True

    def find(self, block: nn.Module) -> Found | None:
        experts, router = getattr(block, "experts", None), router_of(block)
        names = [p.name for p in forward_parameters(experts)] if isinstance(experts, nn.ModuleDict) else []
        if names[1:3] != ["router_mask", "router_probs"] or experts is None:
            return None
        note = "tokens over an expert's capacity are dropped"
        if not self.runs_the_choice(experts):
            note += (
                "; this version of transformers runs experts 1 and 0 for first and second choice "
                "whatever the router chose: ids are its choice, outputs those of the experts that ran"
            )
        return Found(block, router, experts, count_experts(experts), 2, note)

    @staticmethod
    def runs_the_choice(experts: nn.Module) -> bool:
        """Whether a token routed to expert 0 is really sent there (assumed where no weights are loaded)."""
        device, dtype = execution_device(experts), next(experts.parameters()).dtype
        if device.type == "meta":
            return True
        first: Any = experts["expert_0"]  # type: ignore[index]
        with torch.no_grad():
            x = torch.linspace(-1, 1, first.fc1.in_features, device=device)[None].to(dtype)
            mask = torch.zeros(1, count_experts(experts), dtype=torch.long, device=device)
            mask[:, 0] = 1
            out = experts.forward(x, mask, mask.to(dtype))
            kept = 1 - float(experts.moe_token_dropout)  # type: ignore[arg-type]
            return torch.allclose(out, first(x) * kept, rtol=1e-3)

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        pending: dict[str, Tensor] = {}

        def before_experts(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x, mask, gates = args
            second = gates * (1 - mask)
            ids = torch.stack([mask.argmax(dim=-1), second.argmax(dim=-1)], dim=-1)
            weights = torch.stack([(gates * mask).sum(dim=-1), second.amax(dim=-1)], dim=-1)
            sink(checked(site, Observation(ids, weights, x, pending.pop("logits", None), pending.pop("x", None))))

        handles = [experts_of(site).register_forward_pre_hook(before_experts)]
        return [*handles, watch_router(site, pending)] if router else handles

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        experts = experts_of(site)
        ids = seen.experts
        if not self.runs_the_choice(experts):
            ids = torch.tensor([1, 0], device=ids.device).expand_as(ids)
        kept = 1 - float(experts.moe_token_dropout)  # type: ignore[arg-type]
        out = seen.expert_input.new_zeros(*ids.shape, seen.expert_input.shape[-1])
        for expert in ids.unique().tolist():
            token, slot = torch.where(ids == expert)
            out[token, slot] = experts[f"expert_{expert}"](seen.expert_input[token])  # type: ignore[index]
        return out * seen.weights.unsqueeze(-1) * kept

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        return [experts_of(site).register_forward_hook(lambda _m, _a, output: watcher(output))]


class Llama4Experts(Adapter):
    """Llama 4: every expert is given every token, scaled by its score, which is 0 unless it was chosen."""

    name = "scaled-input"

    def find(self, block: nn.Module) -> Found | None:
        experts, router = getattr(block, "experts", None), getattr(block, "router", None)
        if not (isinstance(experts, nn.Module) and isinstance(router, nn.Linear) and hasattr(router, "top_k")):
            return None
        if len(forward_parameters(experts)) != 1:
            return None
        note = "the gate weight multiplies the expert's input, so its output is not linear in the weight"
        return Found(block, router, experts, router.out_features, int(router.top_k), note)  # type: ignore[arg-type]

    def attach(self, site: MoeSite, sink: Sink, *, router: bool = False) -> list[RemovableHandle]:
        def after_router(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            x, (scores, logits) = rows(args[0]), output
            # The router's own operation on its own tensor: scores may tie once rounded, logits decide.
            ids = logits.topk(site.info.top_k, dim=1).indices
            sink(checked(site, Observation(ids, scores.gather(1, ids), x, logits, x)))

        assert site.router is not None
        return [site.router.register_forward_hook(after_router)]

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        n_tokens, k = seen.experts.shape
        d = seen.expert_input.shape[-1]
        token = torch.arange(n_tokens, device=seen.experts.device)[:, None].expand(-1, k)
        dense = seen.expert_input.new_zeros(site.info.num_experts, n_tokens, d)
        scaled = seen.expert_input[:, None] * seen.weights.to(dense.dtype)[..., None]
        dense.index_put_((seen.experts, token), scaled, accumulate=True)
        out = experts_of(site).forward(dense.view(-1, d)).view(site.info.num_experts, n_tokens, d)
        return out[seen.experts, token]

    def watch_total(self, site: MoeSite, watcher: Watcher) -> list[RemovableHandle]:
        n_experts = site.info.num_experts
        return [
            experts_of(site).register_forward_hook(
                lambda _m, _a, output: watcher(output.reshape(n_experts, -1, output.shape[-1]).sum(dim=0))
            )
        ]


#: Adapters by name, in the order in which they are asked: the special ones first.
ADAPTERS: MappingProxyType[str, Adapter] = MappingProxyType(
    {
        adapter.name: adapter
        for adapter in (
            SwitchExperts(),
            NllbExperts(),
            Llama4Experts(),
            SortedExperts(),
            SortedAttention(),
            ProductKeys(),
            IdentityExperts(),
            ExpertsInput(),
        )
    }
)
