"""Similarity of experts by their weights alone: it needs no data, and so depends on no corpus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.results import Result

if TYPE_CHECKING:
    from torch import Tensor, nn

    from moe_probe.models import LoadedModel, MoeSite


def weight_similarity(loaded: LoadedModel) -> Result:
    """Compute the cosine similarity of the experts of every layer, by router rows and by expert weights.

    Lo et al. 2024, A closer look into mixture-of-experts, arXiv:2406.18219, section 4.1 (cosine of
    flattened matrices; of router rows).

    Parameters
    ----------
    loaded : LoadedModel
        The model, with its MoE layers.

    Returns
    -------
    Result
        ``weight_similarity``: ``layer, expert_a, expert_b`` (a < b), ``kind`` ("router" | "weights"),
        ``similarity`` (-1 to 1). A layer whose weights are not laid out by expert is left out, with a warning.
    """
    import pandas as pd

    parts, warnings = [], []
    for site in loaded.sites:
        for kind, gram in (("router", _router_gram(site)), ("weights", _expert_gram(site))):
            if gram is None:
                warnings.append(f"Layer {site.info.layer} was left out: it has no {kind} with one row per expert.")
                continue
            a, b = np.triu_indices(site.info.num_experts, k=1)
            norm = np.sqrt(np.maximum(np.diag(gram), 1e-30))
            parts.append(
                pd.DataFrame(
                    {
                        "layer": site.info.layer,
                        "expert_a": a,
                        "expert_b": b,
                        "kind": kind,
                        "similarity": gram[a, b] / norm[a] / norm[b],
                    }
                )
            )
    columns = ["layer", "expert_a", "expert_b", "kind", "similarity"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return Result(
        "weight_similarity",
        table,
        params={"fingerprint": loaded.info.fingerprint},
        warnings=tuple(warnings),
        citations=("Lo et al. 2024, similarity of experts, arXiv:2406.18219",),
        caption="Cosine similarity of pairs of experts of one layer, of their router rows and of their flattened weights. "
        "Values near 1 mean nearly equal weights, values near 0 unrelated ones.",
    )


def _router_gram(site: MoeSite) -> np.ndarray | None:
    """Compute the inner products of router rows, shape (n_experts, n_experts); None without a matrix of one row per expert."""
    if site.router is None:
        return None
    for parameter in site.router.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == site.info.num_experts:
            return _gram([parameter])
    return None


def _expert_gram(site: MoeSite) -> np.ndarray | None:
    """Compute the inner products of experts' weights, shape (n_experts, n_experts); None without weights by expert."""
    blocks = list(_by_expert(site.experts, site.info.num_experts)) if site.experts is not None else []
    return _gram(blocks) if blocks else None


def _by_expert(module: nn.Module, n: int) -> Iterator[Tensor]:
    """Yield tensors (n_experts, ...): fused ones as they are, those of lists of experts stacked."""
    from torch import nn, stack

    fused = [p for p in module.parameters() if p.ndim == 3 and p.shape[0] == n]
    if fused:
        yield from fused
        return
    for child in [module, *module.modules()]:
        if isinstance(child, nn.ModuleList) and len(child) == n:
            columns = [[p for p in one.parameters() if p.ndim == 2] for one in child]
            for alike in zip(*columns, strict=False):
                if len({p.shape for p in alike}) == 1:
                    yield stack([p.detach() for p in alike])
            return


def _gram(blocks: list[Tensor]) -> np.ndarray:
    """Sum the inner products of experts over tensors (n_experts, ...), without a second copy of all weights."""
    total = None
    for block in blocks:
        flat = block.detach().reshape(block.shape[0], -1).float()
        inner = (flat @ flat.T).double().cpu().numpy()
        total = inner if total is None else total + inner
    assert total is not None
    return np.asarray(total)
