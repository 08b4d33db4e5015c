"""How good is an SAE? Variance and loss on held-out documents, dead and dense latents, redundancy of the decoder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.errors import MoeProbeError
from moe_probe.models.splice import spliced

if TYPE_CHECKING:
    import torch

    from moe_probe.features.firing import Firings
    from moe_probe.models import LoadedModel
    from moe_probe.models.prefix import PrefixCache
    from moe_probe.sae import ActivationReader, Sae
    from moe_probe.trace import Trace

#: Latents that fire on more than this share of tokens say little: "dense".
DENSE = 0.1
_COS = 0.9


@dataclass(frozen=True)
class LossSample:
    """Token ids of held-out documents on which losses are compared, which of them are special, and the documents' rows."""

    ids: tuple[np.ndarray, ...]
    special: tuple[np.ndarray, ...]
    documents: tuple[int, ...]


class Splice(NamedTuple):
    """What to put in the place of the activations of text tokens, and where."""

    layer: int
    hook: str
    replace: Callable[[torch.Tensor], torch.Tensor]


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
        found = (firings.matrix[n:n + len(x)] @ rows + offset) * float(sae.scale)
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
            cosine = rows[start:start + 2048] @ rows.T
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
    return {"tokens": n, "fvu": variance_unexplained(sae, reader, firings), "l0": float(firings.matrix.nnz / max(n, 1)),
            "dead": float((counts == 0).mean()), "dense": float((counts > DENSE * n).mean()),
            "redundancy": redundancy, "duplicates": duplicates}


def loss_sample(trace: Trace, held_out: np.ndarray, *, max_tokens: int = 8192, cut: int | None = None, seed: int = 0,
                ) -> LossSample:
    """Draw held-out documents, topics in turn, until about `max_tokens`.

    Documents longer than the trace's windows, or than `cut`, are cut.
    """
    documents = trace.documents
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.flatnonzero(held_out))
    rank = documents.iloc[chosen].groupby("topic").cumcount().to_numpy()
    chosen = chosen[np.argsort(rank, kind="stable")]
    windowing = trace.manifest.windowing
    limit = min(windowing.max_length if windowing is not None else 2048, cut or 2**31)
    table = trace.tokens(["document", "token_id", "special"])
    starts = np.searchsorted(table["document"].to_numpy(), np.arange(len(documents) + 1))
    ids, special = table["token_id"].to_numpy().astype(np.int64), table["special"].to_numpy()
    used: list[int] = []
    held = 0
    for document in chosen:
        size = min(int(starts[document + 1] - starts[document]), limit)
        if size > 1 and held < max_tokens:
            used.append(int(document))
            held += size
    parts = [slice(int(starts[d]), min(int(starts[d + 1]), int(starts[d]) + limit)) for d in used]
    if not used:
        raise MoeProbeError("no held-out document has two tokens", "there is no next token to predict", "longer documents")
    return LossSample(tuple(ids[p] for p in parts), tuple(special[p] for p in parts), tuple(used))


def losses(loaded: LoadedModel, sample: LossSample, splice: Splice | None = None, *, batch_tokens: int = 4096,
           prefix: PrefixCache | None = None) -> np.ndarray:
    """Mean next-token loss of every document, in nats, shape (n_documents,).

    Parameters
    ----------
    splice : Splice, optional
        Applied to text tokens; special tokens and padding keep their activations, which no SAE was trained on.
    prefix : PrefixCache, optional
        Layers below what is changed are then run only once over the sample.

    Raises
    ------
    MoeProbeError
        When the model has no such layer, or its family no such hook point.
    """
    out = np.zeros(len(sample.ids))
    order = sorted(range(len(sample.ids)), key=lambda i: -len(sample.ids[i]))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(sample.ids[batch[0]]) > batch_tokens:
            out[batch] = _batch_losses(loaded, sample, batch, splice, prefix)
            batch = []
        batch.append(i)
    out[batch] = _batch_losses(loaded, sample, batch, splice, prefix)
    return out


def _batch_losses(loaded: LoadedModel, sample: LossSample, batch: list[int], splice: Splice | None,
                  prefix: PrefixCache | None) -> np.ndarray:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from moe_probe.models import forward_inputs, input_device

    device = input_device(loaded.model)
    ids = pad_sequence([torch.from_numpy(sample.ids[i]) for i in batch], batch_first=True)
    real = pad_sequence([torch.ones(len(sample.ids[i]), dtype=torch.bool) for i in batch], batch_first=True)
    text = pad_sequence([torch.from_numpy(~sample.special[i]) for i in batch], batch_first=True)
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        if splice is not None:
            def replace(x: torch.Tensor) -> torch.Tensor:
                return torch.where(text.reshape(-1, 1).to(x.device), splice.replace(x).to(x), x)

            stack.enter_context(spliced(loaded.model, site_of(loaded, splice.layer), splice.hook, replace))
        if prefix is not None:
            stack.enter_context(prefix.using(tuple(batch)))
        logits = loaded.model(**forward_inputs(loaded.model, ids.to(device), real.long().to(device))).logits
        flat = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten().to(device),
                                                 reduction="none").reshape(len(batch), -1).cpu()
    return np.asarray(((flat * real[:, 1:]).sum(1) / real[:, 1:].sum(1)).numpy())


def loss_recovered(
    loaded: LoadedModel, sae: Sae, sample: LossSample, *, plain: np.ndarray, ablated: Mapping[str, np.ndarray], seed: int = 0,
) -> dict[str, float]:
    """Cross-entropy with the reconstruction spliced into the model at the SAE's hook point.

    ``recovered = (loss with zeros - loss with the reconstruction) / (loss with zeros - loss as is)``; 1 is perfect. The
    stricter version puts the mean activation in the place of zeros. Intervals: 95 %, bootstrap over documents.
    Measure of Bricken et al. 2023 and SAELens' evaluations.

    Parameters
    ----------
    plain : ndarray, shape (n_documents,)
        Losses as is.
    ablated : mapping
        Losses with ``zero`` and ``mean`` in the activations' place, shape (n_documents,) each.
    """
    splice = Splice(sae.config.layer, sae.config.hook, lambda x: sae(x.float().cpu()).to(x.device))
    ours = losses(loaded, sample, splice)
    weight = np.array([len(i) - 1 for i in sample.ids], dtype=np.float64)
    draws = np.random.default_rng(seed).multinomial(len(weight), np.full(len(weight), 1 / len(weight)), size=1000) * weight

    def recovered(weights: np.ndarray, floor: np.ndarray) -> np.ndarray:
        return np.asarray((weights @ (floor - ours)) / (weights @ (floor - plain)))

    low, high = np.quantile(recovered(draws, ablated["zero"]), [0.025, 0.975])
    mean = weight / weight.sum()
    return {"ce_model": float(mean @ plain), "ce_spliced": float(mean @ ours), "ce_zero": float(mean @ ablated["zero"]),
            "ce_mean": float(mean @ ablated["mean"]), "ce_recovered": float(recovered(mean, ablated["zero"])),
            "ce_recovered_low": float(low), "ce_recovered_high": float(high),
            "ce_recovered_mean": float(recovered(mean, ablated["mean"]))}


def ablated_losses(loaded: LoadedModel, layer: int, hook: str, sample: LossSample, *, mean: torch.Tensor,
                   ) -> dict[str, np.ndarray]:
    """Losses with zeros, and with the mean activation, in the place of all activations at a hook point."""
    def put(value: torch.Tensor) -> Splice:
        return Splice(layer, hook, lambda x: value.to(x).expand_as(x))

    return {"zero": losses(loaded, sample, put(mean * 0)), "mean": losses(loaded, sample, put(mean))}


def site_of(loaded: LoadedModel, layer: int) -> Any:
    """The model's MoE layer of a number.

    Raises
    ------
    MoeProbeError
        When there is none.
    """
    for site in loaded.sites:
        if site.info.layer == layer:
            return site
    raise MoeProbeError(f"the model has no MoE layer {layer}", f"it has {[s.info.layer for s in loaded.sites]}", "one of those")
