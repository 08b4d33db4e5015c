"""How good is an SAE? Variance and loss on held-out documents, dead and dense latents, redundancy of the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.stats import Interval, Resamples, ratio_interval
from moe_probe.features.spliced_loss import LossSample, Splice, losses

if TYPE_CHECKING:
    import torch

    from moe_probe.features.firing import Firings
    from moe_probe.models import LoadedModel
    from moe_probe.sae import ActivationReader, Sae

#: Latents that fire on more than this share of tokens say little: "dense".
DENSE = 0.1
_COS = 0.9


def variance_unexplained(sae: Sae, reader: ActivationReader, firings: Firings) -> float:
    """Fraction of variance unexplained (FVU): squared error over squared distance from the mean.

    Parameters
    ----------
    firings : Firings
        Of the same tokens: they are decoded, not encoded again.
    """
    import torch

    from moe_probe.sae.activations import select

    rows, offset = sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy()
    error, squares, total, n = 0.0, 0.0, np.zeros(sae.config.d_in), 0
    for batch in reader.in_order():
        x = select(batch, sae.config).to(torch.float32).numpy()
        found = (firings.matrix[n : n + len(x)] @ rows + offset) * float(sae.scale)
        error += float(np.square(x - found, dtype=np.float64).sum())
        squares += float(np.square(x, dtype=np.float64).sum())
        total += x.sum(0, dtype=np.float64)
        n += len(x)
    spread = squares - float(np.square(total).sum()) / max(n, 1)
    return error / spread if spread > 0 else float("nan")


def decoder_redundancy(sae: Sae, alive: np.ndarray) -> tuple[float, float]:
    """Mean over living latents of the largest cosine with another's decoder row, and the share above 0.9."""
    import torch

    with torch.inference_mode():
        rows = torch.nn.functional.normalize(sae.W_dec[torch.from_numpy(alive)], dim=1)
        if len(rows) < 2:
            return float("nan"), float("nan")
        largest = []
        for start in range(0, len(rows), 2048):
            cosine = rows[start : start + 2048] @ rows.T
            cosine[torch.arange(len(cosine)), start + torch.arange(len(cosine))] = -1
            largest.append(cosine.max(1).values)
        best = torch.cat(largest)
    return float(best.mean()), float((best > _COS).float().mean())


def quality_row(sae: Sae, reader: ActivationReader, firings: Firings) -> dict[str, Any]:
    """Measures of one SAE on held-out tokens.

    Returns
    -------
    dict
        ``tokens, fvu, l0`` (active latents a token), ``dead`` (share of latents that never fire), ``dense`` (share that
        fire on more than a tenth of tokens), ``redundancy`` and ``duplicates`` of `decoder_redundancy`.
    """
    counts = firings.counts
    redundancy, duplicates = decoder_redundancy(sae, counts > 0)
    n = len(firings.rows)
    return {
        "tokens": n,
        "fvu": variance_unexplained(sae, reader, firings),
        "l0": float(firings.matrix.nnz / max(n, 1)),
        "dead": float((counts == 0).mean()),
        "dense": float((counts > DENSE * n).mean()),
        "redundancy": redundancy,
        "duplicates": duplicates,
    }


def loss_recovered(
    loaded: LoadedModel,
    sae: Sae,
    sample: LossSample,
    *,
    plain: np.ndarray,
    ablated: Mapping[str, np.ndarray],
    group: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Cross-entropy with the reconstruction spliced into the model at the SAE's hook point.

    ``recovered = (loss with zeros - loss with the reconstruction) / (loss with zeros - loss as is)``; 1 is perfect. The
    stricter version puts the mean activation in the place of zeros. Intervals: 95 %, bootstrap over groups.
    Measure of Bricken et al. 2023 and SAELens' evaluations.

    Parameters
    ----------
    plain : ndarray, shape (n_documents,)
        Losses as is.
    ablated : mapping
        Losses with ``zero`` and ``mean`` in the activations' place, shape (n_documents,) each.
    group : ndarray, shape (n_documents,), optional
        Group of each document, which are resampled together; each document its own if not given.
    """
    splice = Splice(sae.config.layer, sae.config.hook, lambda x: sae(x.float().cpu()).to(x.device))
    ours = losses(loaded, sample, splice)
    weight = np.array([len(i) - 1 for i in sample.ids], dtype=np.float64)
    number = np.unique(np.arange(len(weight)) if group is None else group, return_inverse=True)[1]
    drawn = Resamples.pooled(number.max() + 1, n=1000, seed=seed)

    def recovered(floor: np.ndarray) -> Interval:
        return ratio_interval(
            drawn, np.bincount(number, weight * (floor - ours)), np.bincount(number, weight * (floor - plain))
        )

    mean = weight / weight.sum()
    return {
        "ce_model": float(mean @ plain),
        "ce_spliced": float(mean @ ours),
        "ce_zero": float(mean @ ablated["zero"]),
        "ce_mean": float(mean @ ablated["mean"]),
        **recovered(ablated["zero"]).row("ce_recovered", "ce_recovered"),
        "ce_recovered_mean": float(recovered(ablated["mean"]).value),
    }


def ablated_losses(
    loaded: LoadedModel,
    layer: int,
    hook: str,
    sample: LossSample,
    *,
    mean: torch.Tensor,
) -> dict[str, np.ndarray]:
    """Losses with zeros, and with the mean activation, in the place of all activations at a hook point."""

    def put(value: torch.Tensor) -> Splice:
        return Splice(layer, hook, lambda x: value.to(x).expand_as(x))

    return {"zero": losses(loaded, sample, put(mean * 0)), "mean": losses(loaded, sample, put(mean))}
