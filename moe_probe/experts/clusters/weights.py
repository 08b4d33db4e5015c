"""Similarity of experts by their weights alone: it needs no data, and so depends on no corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.results import Result

if TYPE_CHECKING:
    from torch import nn

    from moe_probe.models import LoadedModel, MoeSite
    from moe_probe.models.weights import OwnedTensor


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
                warnings.append(
                    f"Layer {site.info.layer} was left out: no {kind} of it have one row per expert, unquantised."
                )
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
    for owned in _plain(site.router):
        if owned.tensor.ndim == 2 and owned.tensor.shape[0] == site.info.num_experts:
            return _gram([owned])
    return None


def _expert_gram(site: MoeSite) -> np.ndarray | None:
    """Compute the inner products of experts' weights, shape (n_experts, n_experts); None without weights by expert."""
    blocks = list(_by_expert(site.experts, site.info.num_experts)) if site.experts is not None else []
    return _gram(blocks) if blocks else None


def _plain(module: nn.Module) -> list[OwnedTensor]:
    """List the parameters of a module that hold numbers as they are: codes of quantised ones say nothing without scales."""
    from torch import nn

    from moe_probe.models.weights import own_tensors

    owned = [one for _, one in own_tensors(module) if isinstance(one.tensor, nn.Parameter)]
    return [one for one in owned if one.tensor.is_floating_point() and one.tensor.element_size() > 1]


def _by_expert(module: nn.Module, n: int) -> Iterator[tuple[OwnedTensor, ...]]:
    """Yield tensors (n_experts, ...): fused ones alone, those of lists of experts one for each expert."""
    from torch import nn

    fused = [one for one in _plain(module) if one.tensor.ndim == 3 and one.tensor.shape[0] == n]
    if fused:
        yield from ((one,) for one in fused)
        return
    for child in [module, *module.modules()]:
        if isinstance(child, nn.ModuleList) and len(child) == n:
            columns = [[one for one in _plain(expert) if one.tensor.ndim == 2] for expert in child]
            for alike in zip(*columns, strict=False):
                if len({one.tensor.shape for one in alike}) == 1:
                    yield alike
            return


def _gram(blocks: Sequence[OwnedTensor | tuple[OwnedTensor, ...]]) -> np.ndarray:
    """Sum the inner products of experts over tensors (n_experts, ...), without a second copy of all weights."""
    from torch import stack

    from moe_probe.models.weights import OwnedTensor, whole

    total = None
    for block in blocks:
        parts = [whole(one).detach() for one in ((block,) if isinstance(block, OwnedTensor) else block)]
        values = parts[0] if len(parts) == 1 else stack(parts)
        flat = values.reshape(values.shape[0], -1).float()
        inner = (flat @ flat.T).double().cpu().numpy()
        total = inner if total is None else total + inner
    assert total is not None
    return np.asarray(total)
