"""Quality of an SAE: variance and loss on held-out documents, dead and dense latents, redundancy of the decoder."""

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

#: Latents that fire on more than this share of tokens carry little information: "dense".
DENSE = 0.1
_COS = 0.9


def variance_unexplained(sae: Sae, reader: ActivationReader, firings: Firings) -> float:
    """Compute the fraction of variance unexplained (FVU): squared error over squared distance from the mean.

    Parameters
    ----------
    sae : Sae
    reader : ActivationReader
    firings : Firings
        Of the same tokens: they are decoded, not encoded again.

    Returns
    -------
    float
    """
    import torch

    from moe_probe.sae.activations import select

    rows, offset = sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy()
    error, squares, total, n = 0.0, 0.0, np.zeros(sae.config.d_in), 0
    for batch in reader.in_order():
        x = select(batch, sae.config).to(torch.float32).numpy()
        decoded = (firings.matrix[n : n + len(x)] @ rows + offset) * float(sae.scale)
        error += float(np.square(x - decoded, dtype=np.float64).sum())
        squares += float(np.square(x, dtype=np.float64).sum())
        total += x.sum(0, dtype=np.float64)
        n += len(x)
    spread = squares - float(np.square(total).sum()) / max(n, 1)
    return error / spread if spread > 0 else float("nan")


def decoder_redundancy(sae: Sae, alive: np.ndarray) -> tuple[float, float]:
    """Compare the decoder rows of living latents.

    Parameters
    ----------
    sae : Sae
    alive : ndarray of bool, shape (d_sae,)

    Returns
    -------
    redundancy : float
        Mean over living latents of the largest cosine with another's row.
    duplicates : float
        Share of them above 0.9.
    """
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
    """Measure one SAE on held-out tokens.

    Parameters
    ----------
    sae : Sae
    reader : ActivationReader
        Of held-out documents.
    firings : Firings
        Of the same tokens.

    Returns
    -------
    dict
        ``tokens, fvu, l0`` (active latents per token), ``dead`` (share of latents that never fire), ``dense`` (share that
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
    loaded: LoadedModel, sae: Sae, sample: LossSample, unspliced: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, float]:
    """Measure cross-entropy with the reconstruction spliced into the model at the SAE's hook point.

    ``recovered = (loss with zeros - loss with the reconstruction) / (loss with zeros - loss as is)``; 1 is perfect. The
    stricter version puts the mean activation in place of zeros. Intervals: 95 %, bootstrap over groups of documents.
    Measure of Bricken et al. 2023 and SAELens' evaluations.

    Parameters
    ----------
    loaded : LoadedModel
    sae : Sae
    sample : LossSample
    unspliced : mapping
        Losses as is (``plain``) and with zeros and the mean in place of the activations (``zero``, ``mean``), shape
        (n_documents,) each, in nats.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``ce_model, ce_spliced, ce_zero, ce_mean`` (nats per token), ``ce_recovered, ce_recovered_low, ce_recovered_high,
        ce_recovered_mean``.
    """
    plain, zero, mean = (unspliced[name] for name in ("plain", "zero", "mean"))
    splice = Splice(sae.config.layer, sae.config.hook, lambda x: sae(x.float().cpu()).to(x.device))
    reconstructed = losses(loaded, sample, splice)
    weight = np.array([len(i) - 1 for i in sample.ids], dtype=np.float64)
    number = np.unique(np.arange(len(weight)) if sample.group is None else sample.group, return_inverse=True)[1]
    drawn = Resamples.pooled(number.max() + 1, n=1000, seed=seed)

    def recovered(floor: np.ndarray) -> Interval:
        return ratio_interval(
            drawn, np.bincount(number, weight * (floor - reconstructed)), np.bincount(number, weight * (floor - plain))
        )

    share = weight / weight.sum()
    return {
        "ce_model": float(share @ plain),
        "ce_spliced": float(share @ reconstructed),
        "ce_zero": float(share @ zero),
        "ce_mean": float(share @ mean),
        **recovered(zero).row("ce_recovered", "ce_recovered"),
        "ce_recovered_mean": float(recovered(mean).value),
    }


def ablated_losses(
    loaded: LoadedModel,
    layer: int,
    hook: str,
    sample: LossSample,
    *,
    mean: torch.Tensor,
) -> dict[str, np.ndarray]:
    """Measure losses with zeros, and with the mean activation, in place of all activations at a hook point.

    Parameters
    ----------
    loaded : LoadedModel
    layer : int
    hook : str
        Activation site.
    sample : LossSample
    mean : Tensor, shape (d_in,)

    Returns
    -------
    dict
        ``zero`` and ``mean``: losses in nats, shape (n_documents,) each.
    """

    def put(value: torch.Tensor) -> Splice:
        return Splice(layer, hook, lambda x: value.to(x).expand_as(x))

    return {"zero": losses(loaded, sample, put(mean * 0)), "mean": losses(loaded, sample, put(mean))}
