"""How much of a layer's routing features predict: recall of the chosen experts, and bits, on held-out documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.stats import Resamples, ratio_interval

if TYPE_CHECKING:
    import torch
    from scipy import sparse

_BATCH, _RATE = 4096, 0.05
#: Tokens that are fitted on; more of them change the recall by less than a point.
_FIT_TOKENS = 100_000
#: Passes at most, and without gain before stopping; of a small corpus as many more as these steps need.
_EPOCHS, _PATIENCE, _STEPS, _IDLE_STEPS = 24, 2, 2000, 60


class RoutingData(NamedTuple):
    """Inputs (n_tokens, n_inputs) and chosen experts (n_tokens, n_experts) of some tokens, and their groups (n_tokens,)."""

    inputs: sparse.csr_array
    chosen: sparse.csr_array
    group: np.ndarray

    def take(self, rows: np.ndarray) -> RoutingData:
        """Keep some tokens, by number."""
        return RoutingData(*(part[rows] for part in self))


@dataclass(frozen=True)
class RoutingPrediction:
    """Held-out predictions, summed over groups of documents; arrays are (n_groups,).

    ``hits`` are chosen experts among the k likeliest, ``bits`` saved over the base rate, ``selections`` chosen experts.
    ``expert_bits``, (n_experts,): bits saved per selection of each expert (Poisson log likelihood ratio, which adds up to the
    layer's bits, as in `moe_probe.experts.explain`); NaN for those never chosen.
    """

    hits: np.ndarray
    bits: np.ndarray
    selections: np.ndarray
    expert_bits: np.ndarray

    def estimate(self, *, resamples: int, seed: int = 0) -> dict[str, float]:
        """Estimate recall and bits per selection, over the groups that have selections.

        Parameters
        ----------
        resamples : int
            Of groups, by the bootstrap.
        seed : int

        Returns
        -------
        dict
            ``recall, bits``, with ``_low, _high``: 95 % intervals.
        """
        known = self.selections > 0
        drawn = Resamples.pooled(int(known.sum()), n=resamples, seed=seed)
        out: dict[str, float] = {}
        for name, values in (("recall", self.hits), ("bits", self.bits)):
            out |= ratio_interval(drawn, values[known], self.selections[known]).row(name, name)
        return out


def predict_routing(train: RoutingData, held_out: RoutingData, *, n_groups: int, seed: int = 0) -> RoutingPrediction:
    """Predict the chosen experts from sparse inputs by a multinomial logistic regression.

    Trained with Adam (Kingma and Ba 2015, arXiv:1412.6980) on the cross-entropy of the chosen experts. Training stops when
    it no longer falls on a tenth of the training groups, which is left out of the fit.

    Parameters
    ----------
    train, held_out : RoutingData
    n_groups : int
        Groups in all, the units of the intervals.
    seed : int

    Returns
    -------
    RoutingPrediction
        Of the held-out tokens.
    """
    import torch

    largest = np.zeros(train.inputs.shape[1], dtype=train.inputs.dtype)
    np.maximum.at(largest, train.inputs.indices, np.abs(train.inputs.data))
    scale = 1 / np.maximum(largest, 1e-12)
    rng = np.random.default_rng(seed)
    names = np.unique(train.group)
    aside = np.isin(train.group, rng.choice(names, max(1, len(names) // 10), replace=False))
    fit, check = np.flatnonzero(~aside), np.flatnonzero(aside)
    if len(fit) > _FIT_TOKENS:
        fit = np.sort(rng.choice(fit, _FIT_TOKENS, replace=False))
    if len(fit) == 0:
        fit = check
    weights, bias = _fit(train.take(fit), train.take(check), scale, seed=seed)
    with torch.no_grad():
        logits = _logits(held_out.inputs, scale, weights, bias)
    return _measure(logits, held_out, np.asarray(train.chosen.sum(0)).ravel(), n_groups)


def _logits(x: sparse.csr_array, scale: np.ndarray, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    import torch

    if x.nnz == 0:
        return bias.expand(x.shape[0], -1)
    values = torch.from_numpy((x.data * scale[x.indices]).astype(np.float32))
    sums: torch.Tensor = torch.nn.functional.embedding_bag(
        torch.from_numpy(x.indices.astype(np.int64)),
        weights,
        torch.from_numpy(x.indptr[:-1].astype(np.int64)),
        mode="sum",
        per_sample_weights=values,
    )
    return bias + sums


def _fit(data: RoutingData, check: RoutingData, scale: np.ndarray, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit weights and bias; those of the lowest cross-entropy on `check` are kept."""
    import torch
    from torch.nn.functional import cross_entropy

    x, y = data.inputs, data.chosen
    counts = np.asarray(y.sum(0)).ravel() + 0.5
    bias = torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32)).requires_grad_()
    weights = torch.zeros(x.shape[1], y.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=_RATE, fused=True)
    target, check_target = _shares(y), _shares(check.chosen)
    rng = np.random.default_rng(seed)
    best, kept, waited = np.inf, (weights.detach().clone(), bias.detach().clone()), 0
    per_epoch = -(-x.shape[0] // _BATCH)
    for _ in track(range(max(_EPOCHS, _STEPS // per_epoch)), "fit routing", unit="passes at most"):
        order = rng.permutation(x.shape[0])
        for start in range(0, len(order), _BATCH):
            rows = np.sort(order[start : start + _BATCH])
            loss = cross_entropy(_logits(x[rows], scale, weights, bias), target[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        with torch.no_grad():
            check_loss = float(cross_entropy(_logits(check.inputs, scale, weights, bias), check_target))
        if check_loss < best - 1e-4:
            best, kept, waited = check_loss, (weights.detach().clone(), bias.detach().clone()), 0
        else:
            waited += 1
            if waited >= max(_PATIENCE, _IDLE_STEPS // per_epoch):
                break
    return kept


def _shares(chosen: sparse.csr_array) -> torch.Tensor:
    import torch

    dense = torch.from_numpy(chosen.toarray().astype(np.float32))
    return dense / dense.sum(1, keepdim=True).clamp_min(1)


def _measure(logits: torch.Tensor, data: RoutingData, load: np.ndarray, n_groups: int) -> RoutingPrediction:
    import torch

    y = data.chosen.toarray() > 0
    k = y.sum(1)
    order = torch.argsort(logits, dim=1, descending=True).numpy()
    among = np.arange(y.shape[1])[None] < k[:, None]
    hits = (np.take_along_axis(y, order, 1) & among).sum(1)
    base = np.log2((load + 0.5) / (load + 0.5).sum())
    log_shares = torch.log_softmax(logits, 1).numpy() / np.log(2)
    gains = np.where(y, log_shares - base, 0)
    hits_by_group, bits_by_group, k_by_group = (
        np.bincount(data.group, weights=v, minlength=n_groups) for v in (hits, gains.sum(1), k)
    )
    excess = (k[:, None] * (np.exp2(log_shares) - np.exp2(base))).sum(0) / np.log(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        expert_bits = np.where(y.any(0), (gains.sum(0) - excess) / y.sum(0), np.nan)
    return RoutingPrediction(hits_by_group, bits_by_group, k_by_group, expert_bits)
