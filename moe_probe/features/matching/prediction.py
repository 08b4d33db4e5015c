"""How much of a layer's routing do features predict? Recall of the chosen experts, and bits, on held-out documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.stats import Resamples, ratio_interval

if TYPE_CHECKING:
    import torch
    from scipy import sparse

_BATCH, _RATE = 4096, 0.05
#: Tokens that are fitted on; more of them change the recall by less than a point.
_FIT_TOKENS = 100_000
#: Passes at most, and without gain before stopping; of a small corpus as many more as these steps need.
_EPOCHS, _PATIENCE, _STEPS, _IDLE_STEPS = 24, 2, 2000, 60


@dataclass(frozen=True)
class Predicted:
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
        """Recall and bits a selection with 95 % intervals, over the groups that have selections."""
        known = self.selections > 0
        drawn = Resamples(np.zeros(int(known.sum()), dtype=int), n=resamples, seed=seed)
        out: dict[str, float] = {}
        for name, values in (("recall", self.hits), ("bits", self.bits)):
            out |= ratio_interval(drawn, values[known], self.selections[known]).row(name, name)
        return out


def predict(
    train: sparse.csr_array,
    held_out: sparse.csr_array,
    chosen: sparse.csr_array,
    chosen_held_out: sparse.csr_array,
    *,
    group: np.ndarray,
    group_held_out: np.ndarray,
    n_groups: int,
    seed: int = 0,
) -> Predicted:
    """Predict the chosen experts from sparse inputs by a multinomial logistic regression.

    Trained with Adam (Kingma and Ba 2015, arXiv:1412.6980) on the cross-entropy of the chosen experts; training stops when
    it no longer falls on a tenth of the training groups, which is left out of the fit.

    Parameters
    ----------
    train, held_out : csr_array of float, shape (n_tokens, n_inputs)
    chosen, chosen_held_out : csr_array, shape (n_tokens, n_experts)
    group, group_held_out : ndarray of int, shape (n_tokens,)
        Unit of the intervals.
    """
    import torch

    scale = 1 / np.maximum(np.asarray(abs(train).max(0).toarray()).ravel(), 1e-12)
    rng = np.random.default_rng(seed)
    names = np.unique(group)
    aside = np.isin(group, rng.choice(names, max(1, len(names) // 10), replace=False))
    fit, check = np.flatnonzero(~aside), np.flatnonzero(aside)
    if len(fit) > _FIT_TOKENS:
        fit = np.sort(rng.choice(fit, _FIT_TOKENS, replace=False))
    if len(fit) == 0:
        fit = check
    weights, bias = _fit(train[fit], chosen[fit], train[check], chosen[check], scale=scale, seed=seed)
    with torch.no_grad():
        logits = _logits(held_out, scale, weights, bias)
    return _measure(logits, chosen_held_out, np.asarray(chosen.sum(0)).ravel(), group_held_out, n_groups)


def _logits(x: sparse.csr_array, scale: np.ndarray, weights: Any, bias: Any) -> torch.Tensor:
    import torch

    if x.nnz == 0:
        return bias.expand(x.shape[0], -1)
    values = torch.from_numpy((x.data * scale[x.indices]).astype(np.float32))
    return bias + torch.nn.functional.embedding_bag(
        torch.from_numpy(x.indices.astype(np.int64)),
        weights,
        torch.from_numpy(x.indptr[:-1].astype(np.int64)),
        mode="sum",
        per_sample_weights=values,
    )


def _fit(
    x: sparse.csr_array,
    y: sparse.csr_array,
    check: sparse.csr_array,
    check_y: sparse.csr_array,
    *,
    scale: np.ndarray,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    counts = np.asarray(y.sum(0)).ravel() + 0.5
    bias = torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32)).requires_grad_()
    weights = torch.zeros(x.shape[1], y.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=_RATE, fused=True)
    target, check_target = _shares(y), _shares(check_y)
    rng = np.random.default_rng(seed)
    best, kept, waited = np.inf, (weights.detach().clone(), bias.detach().clone()), 0
    per_epoch = -(-x.shape[0] // _BATCH)
    for _ in range(max(_EPOCHS, _STEPS // per_epoch)):
        order = rng.permutation(x.shape[0])
        for start in range(0, len(order), _BATCH):
            rows = np.sort(order[start : start + _BATCH])
            loss = torch.nn.functional.cross_entropy(_logits(x[rows], scale, weights, bias), target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            found = float(torch.nn.functional.cross_entropy(_logits(check, scale, weights, bias), check_target))
        if found < best - 1e-4:
            best, kept, waited = found, (weights.detach().clone(), bias.detach().clone()), 0
        else:
            waited += 1
            if waited >= max(_PATIENCE, _IDLE_STEPS // per_epoch):
                break
    return kept


def _shares(chosen: sparse.csr_array) -> torch.Tensor:
    import torch

    dense = torch.from_numpy(chosen.toarray().astype(np.float32))
    return dense / dense.sum(1, keepdim=True).clamp_min(1)


def _measure(
    logits: torch.Tensor, chosen: sparse.csr_array, load: np.ndarray, group: np.ndarray, n_groups: int
) -> Predicted:
    import torch

    y = chosen.toarray() > 0
    k = y.sum(1)
    order = torch.argsort(logits, dim=1, descending=True).numpy()
    among = np.arange(y.shape[1])[None] < k[:, None]
    hits = (np.take_along_axis(y, order, 1) & among).sum(1)
    base = np.log2((load + 0.5) / (load + 0.5).sum())
    log_shares = torch.log_softmax(logits, 1).numpy() / np.log(2)
    gains = np.where(y, log_shares - base, 0)
    hits_of, bits_of, k_of = (np.bincount(group, weights=v, minlength=n_groups) for v in (hits, gains.sum(1), k))
    beyond = (k[:, None] * (np.exp2(log_shares) - np.exp2(base))).sum(0) / np.log(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        expert_bits = np.where(y.any(0), (gains.sum(0) - beyond) / y.sum(0), np.nan)
    return Predicted(hits_of, bits_of, k_of, expert_bits)
