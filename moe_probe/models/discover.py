"""Find the mixture-of-experts layers of a model by looking at its modules, not at its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import MoeLayer
from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import Adapter, MatchedBlock, MoeSite, execution_device

#: Parts of a model that plain text does not run through: pictures, sound, speech output, drafting heads.
_TOWERS = re.compile(r"vision|visual|image|audio|speech|video|talker|code2wav|mtp|nextn")
_TOP_K_NAMES = "num_experts_per_tok num_experts_per_token top_k moe_top_k moe_topk top_k_experts moe_k num_selected_experts"
_SHARED_NAMES = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model itself, where it was handed over compiled."""
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model


def input_device(model: nn.Module) -> torch.device:
    """Device on which a model expects its token ids, also where its weights are offloaded."""
    embedding: nn.Module = unwrap(model).get_input_embeddings()  # type: ignore[operator]
    return execution_device(embedding)


def find_moe_layers(model: nn.Module, *, stacks: Collection[str] = ("decoder", "encoder"), note: str = "") -> list[MoeSite]:
    """List the mixture-of-experts layers of a model: where a router sends tokens to experts.

    A block counts when one of its modules is *called* like experts (hidden states, expert ids, gate
    weights), or when one of the adapters for the few families written otherwise recognises it. Dense
    layers simply have no such module, so no configuration has to be understood.

    Parameters
    ----------
    model : nn.Module
        A model of transformers, or any composite that contains one.
    stacks : collection of str
        Which parts of the model to list. ``decoder`` is the language model itself; ``encoder`` the
        encoder of an encoder-decoder; towers for pictures, sound or drafting have the name of their
        module and are left out by default, because text does not run through them.
    note : str
        Added to the note of every layer, for example how the weights were loaded.

    Returns
    -------
    list of MoeSite
        In the order of the model's modules, which is the order of its layers.

    Raises
    ------
    MoeProbeError
        If there are no experts, or experts that are not understood.
    """
    model = unwrap(model)
    matches = [match for match in _scan(model) if _stack(match.name) in stacks]
    if not matches:
        raise _nothing_found(model)
    layers = _layer_numbers([match.name for match in matches])
    return [_site(model, match, layer=layer, note=note) for layer, match in zip(layers, matches, strict=True)]


class _Match(NamedTuple):
    name: str
    adapter: Adapter
    modules: MatchedBlock


def _scan(model: nn.Module) -> Iterator[_Match]:
    """Ask the adapters, in order, about every module of the model."""
    for name, module in model.named_modules():
        for adapter in ADAPTERS.values():
            if (modules := adapter.match(module)) is not None:
                yield _Match(name, adapter, modules)
                break


def _stack(name: str) -> str:
    """Which part of the model a module path belongs to."""
    parts = name.split(".")
    for part in parts:
        if _TOWERS.search(part):
            return part
    return "encoder" if "encoder" in parts else "decoder"


def _layer_numbers(names: list[str]) -> list[int]:
    """First number in each module path where these differ, otherwise the ordinals of the layers."""
    numbers = [next((int(part) for part in name.split(".") if part.isdigit()), -1) for name in names]
    unique = len(set(numbers)) == len(numbers) and min(numbers) >= 0
    return numbers if unique else list(range(len(names)))


def _text_configs(model: nn.Module) -> list[Any]:
    """List the configurations that may describe the experts: the text part's first."""
    config = getattr(model, "config", None)
    if config is None:
        return []
    parts = [getattr(config, name, None) for name in (getattr(config, "sub_configs", None) or {})]
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [text, config, *[part for part in parts if part is not None]]


def _first_int(holders: list[Any], names: Sequence[str]) -> int:
    """First positive integer found under one of the names; 0 if none."""
    for holder in holders:
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0


def _shared_experts(model: nn.Module, name: str, block: nn.Module) -> int:
    """Count the always-active experts of a block, or of the layer around it (0 if there are none)."""
    parent = model.get_submodule(name.rpartition(".")[0])
    for holder in (block, parent):
        for child_name, child in holder.named_children():
            if child_name.startswith("shared_") and "gate" not in child_name and any(True for _ in child.parameters()):
                return _first_int([block, *_text_configs(model)], _SHARED_NAMES) or 1
    return 0


def _logits_index(model: nn.Module, router: nn.Module | None, *, default: int) -> int:
    """Where the router's output holds its logits, as the model class itself declares it."""
    for module in model.modules():
        recorders = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits", [])
        for recorder in recorders if isinstance(recorders, list) else [recorders]:
            target = getattr(recorder, "target_class", None)
            if router is not None and isinstance(target, type) and isinstance(router, target):
                return int(recorder.index)
    return default


def _site(model: nn.Module, match: _Match, *, layer: int, note: str) -> MoeSite:
    name, adapter, modules = match
    configs = _text_configs(model)
    num_experts = modules.num_experts or _first_int([modules.router, *configs], _EXPERT_COUNTS)
    top_k = modules.top_k or _first_int([modules.router, modules.block, modules.experts, *configs], _TOP_K_NAMES.split())
    if num_experts < 1 or top_k < 1:
        raise MoeProbeError(
            f"{name} looks like experts, but their number is unknown",
            f"found {num_experts or 'no number of'} experts, {top_k or 'no number of'} per token",
            "report this model, with its config.json",
        )
    info = MoeLayer(
        layer=layer,
        name=name,
        stack=_stack(name),
        num_experts=num_experts,
        top_k=top_k,
        router=type(modules.router).__name__ if modules.router is not None else "none",
        experts=type(modules.experts if modules.experts is not None else modules.block).__name__,
        shared_experts=_shared_experts(model, name, modules.block),
        capture=adapter.name,
        note="; ".join(part for part in (modules.note, note) if part),
    )
    index = _logits_index(model, modules.router, default=adapter.logits_index)
    return MoeSite(info, modules.block, modules.router, modules.experts, adapter.name, index)


def _nothing_found(model: nn.Module) -> MoeProbeError:
    """Why a model has no sites: it is dense, or its experts are written in a way that is not understood."""
    config = getattr(model, "config", None)
    label = getattr(config, "_name_or_path", "") or getattr(config, "model_type", "") or type(model).__name__
    count = _first_int(_text_configs(model), _EXPERT_COUNTS)
    lists = Counter(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.ModuleList))
    if count > 1 or "experts" in lists:
        return MoeProbeError(
            f"the experts of {label} are not understood",
            "its configuration names experts but no module of it is called with expert ids and gate weights, "
            "as in code written for older versions of transformers",
            "load it without remote code, by a model type that the installed transformers has",
        )
    return MoeProbeError(
        f"{label} has no mixture-of-experts layers",
        "it is a dense model: no router chooses between experts",
        "a mixture-of-experts model such as allenai/OLMoE-1B-7B-0924",
    )
