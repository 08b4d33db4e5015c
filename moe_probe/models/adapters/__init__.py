"""How to read routing off a block: one adapter for nearly every family, one class for each exception.

A module of a model comes in; a `MoeSite` and what its router executed come out.

- `base` what an adapter is: does it match, where to hook, how to recompute the outputs of experts.
- `experts_module` nearly every family: the experts are one module, called with ``(hidden_states, top_k_index,
  top_k_weights)``; a pre-hook observes what was really executed, after biases, groups, hashing and capacity.
- `masked` Switch Transformers, NLLB-MoE, Llama 4; `jetmoe` JetMoE; `product_keys` Doge.

An adapter recognises its blocks by their structure, not by class name, so that renamed copies of a family work too; whether
it understood them is what `moe_probe.models.self_check` proves.
"""

from __future__ import annotations

from types import MappingProxyType

from moe_probe.models.adapters.base import Adapter
from moe_probe.models.adapters.experts_module import ExpertsInput, IdentityExperts
from moe_probe.models.adapters.jetmoe import SortedAttention, SortedExperts
from moe_probe.models.adapters.masked import Llama4Experts, NllbExperts, SwitchExperts
from moe_probe.models.adapters.product_keys import ProductKeys

__all__ = ["ADAPTERS"]

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
