"""Identify weights and tokenizer by hashes that change exactly when these do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import MoeSite
from moe_probe.models.discover import unwrap

#: Bytes that are copied to main memory at once while hashing.
_CHUNK_BYTES = 2**26


def fingerprint(model: nn.Module, sites: Sequence[MoeSite]) -> str:
    """Hash the tensors that decide the routing: routers, experts, and biases kept beside them.

    Parameters
    ----------
    model : nn.Module
    sites : sequence of MoeSite
        From `find_moe_layers`.

    Returns
    -------
    str
        SHA-256 in hexadecimal over name, shape, type and bytes of each tensor, in the order of the
        names. It does not depend on the device, nor on weights outside the mixture-of-experts blocks.

    Raises
    ------
    MoeProbeError
        If some of the tensors are not in memory (offloaded to disk), or the sites belong to another model.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_routing_tensors(unwrap(model), sites).items()):
        if tensor.is_meta:
            raise MoeProbeError(
                f"the weights {name} are not in memory",
                "they were offloaded, so the model cannot be identified",
                "load the model on one device that can hold it",
            )
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        _add_bytes(digest, tensor)
    return digest.hexdigest()


def _routing_tensors(model: nn.Module, sites: Sequence[MoeSite]) -> dict[str, Tensor]:
    """Parameters and buffers of router and experts, and those of the block itself (selection biases)."""
    names = {module: name for name, module in model.named_modules()}
    tensors: dict[str, Tensor] = {}
    for site in sites:
        if site.block not in names:
            raise MoeProbeError(
                f"the model has no block {site.info.name} of this site",
                "the sites belong to another model",
                "pass find_moe_layers(model) of the same model",
            )
        for module, deep in (*((part, True) for part in ADAPTERS[site.adapter].parts(site)), (site.block, False)):
            for name, tensor in (*module.named_parameters(recurse=deep), *module.named_buffers(recurse=deep)):
                tensors[f"{names[module]}.{name}"] = tensor
    return tensors


def _add_bytes(digest: Any, tensor: Tensor) -> None:
    """Feed a tensor's bytes to the hash piece by piece, without a second copy of the whole."""
    flat = tensor.detach().contiguous().reshape(-1)
    step = max(1, _CHUNK_BYTES // max(1, flat.element_size()))
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step].cpu()
        digest.update(piece.view(torch.uint8).numpy().data)


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what a tokenizer does: vocabulary, merges, normalisation and special tokens.

    Settings that a single call changes (padding and truncation) are left out.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = json.loads(backend.to_str()) if backend is not None else None
    if isinstance(rules, dict):
        rules = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    described = {
        "rules": rules if rules is not None else type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
