"""Similarity of experts by topics, documents, shared tokens and weights, and the agreement of these measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.stats import permutation_p, topic_moments
from moe_probe.experts.topic_groups import topic_groups

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace


class Similarity(NamedTuple):
    """Two results: ``expert_similarity`` and ``similarity_agreement``."""

    pairs: Result
    agreement: Result


def expert_similarity(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace | Usage,
    *,
    label: str = "topic",
    coactivation: Result | None = None,
    weights: Result | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Similarity:
    """Measure how similar the experts of a layer are, in several senses, and whether the senses agree.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
        Label column of the topics.
    coactivation : Result, optional
        Value of `moe_probe.experts.usage.coactivation_table`.
    weights : Result, optional
        Value of `moe_probe.experts.clusters.weight_similarity`.
    permutations : int
        Number of permutations of experts in each Mantel test.
    seed : int
        Seed of the permutations.

    Returns
    -------
    Similarity
        ``expert_similarity``: ``layer, expert_a, expert_b, kind, similarity``; kinds are ``topics`` (correlation
        of log2 lifts over topics), ``documents`` (correlation of usage over groups of documents),
        ``coactivation`` (log2 of tokens shared over expected, cut at -6 and 6), ``router`` and ``weights``
        (cosine). ``similarity_agreement``: ``layer, kind_a, kind_b, spearman, p_value`` (Mantel 1967, Cancer Research
        27:209: experts of one of the two permuted).

    Raises
    ------
    MoeProbeError
        When documents have no such label or only one topic.
    """
    import pandas as pd

    parts = [_profiles(trace.usage(), label)]
    if coactivation is not None:
        part = coactivation.table[["layer", "expert_a", "expert_b", "lift"]]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.clip(np.log2(part["lift"].to_numpy(dtype=float)), -6, 6)
        parts.append(part.drop(columns="lift").assign(kind="coactivation", similarity=logs))
    if weights is not None:
        parts.append(weights.table)
    table = pd.concat(parts, ignore_index=True)[["layer", "expert_a", "expert_b", "kind", "similarity"]]
    citations = (
        "Mantel 1967, correlation of two distance matrices, https://pubmed.ncbi.nlm.nih.gov/6018555/",
        "Lo et al. 2024, similarity of experts, arXiv:2406.18219",
    )
    pairs = Result(
        "expert_similarity",
        table,
        params={"label": label},
        citations=citations,
        caption="Similarity of pairs of experts of one layer, by kind. Higher is more similar. Topics: correlation of log2 "
        "lifts over topics; documents: correlation of usage over groups of documents; coactivation: log2 of shared tokens "
        "over the number expected of independent experts; router, weights: cosine.",
    )
    columns = ["layer", "kind_a", "kind_b", "spearman", "p_value"]
    agreement = pd.DataFrame(_agreement(table, permutations, seed), columns=columns)
    return Similarity(
        pairs,
        Result(
            "similarity_agreement",
            agreement,
            params={"permutations": permutations},
            seed=seed,
            citations=citations,
            caption="Spearman correlation of two kinds of similarity over the pairs of experts of a layer. A small p says that "
            f"the two kinds agree: two-sided Mantel test, {permutations:,} permutations of the experts of one of them. "
            "Strata of documents do not apply, since experts are permuted and not labels of documents.",
        ),
    )


def _profiles(usage: Usage, label: str) -> pd.DataFrame:
    """Correlate the experts' log2 lifts over topics and their usage over groups; one row per kind and pair."""
    import pandas as pd

    groups = topic_groups(usage, label=label)
    mean, _, _ = topic_moments(groups.shares, groups.topic, n_topics=len(groups.topics))
    with np.errstate(divide="ignore", invalid="ignore"):
        profile = np.clip(np.log2(mean / mean.mean(0)), -4, 4)
    parts = []
    for index, layer in enumerate(usage.layers):
        columns = groups.layer_index == index
        a, b = np.triu_indices(layer.num_experts, k=1)
        for kind, rows in (("topics", profile[:, columns]), ("documents", groups.shares[:, columns])):
            with np.errstate(divide="ignore", invalid="ignore"):
                similarity = np.atleast_2d(np.corrcoef(rows.T))[a, b]  # one expert: a number, and no pairs
            parts.append(
                pd.DataFrame({"layer": layer.layer, "expert_a": a, "expert_b": b, "kind": kind, "similarity": similarity})
            )
    return pd.concat(parts, ignore_index=True)


def _agreement(table: pd.DataFrame, permutations: int, seed: int) -> list[tuple[int, str, str, float, float]]:
    """Test the agreement of every two kinds in every layer; rows of ``similarity_agreement``."""
    kinds = list(dict.fromkeys(table["kind"]))
    rows = []
    for layer, part in table.groupby("layer"):
        n = int(part["expert_b"].max()) + 1
        if n < 4:
            continue
        ranked = {kind: _ranked(part[part["kind"] == kind], n) for kind in kinds}
        for i, a in enumerate(kinds):
            for b in kinds[i + 1 :]:
                rho, p = mantel(ranked[a], ranked[b], permutations=permutations, seed=seed)
                rows.append((int(layer), a, b, rho, p))
    return rows


def _ranked(part: pd.DataFrame, n: int) -> np.ndarray:
    """Arrange the ranks of similarities in a symmetric matrix, shape (n, n); NaN where a pair was not measured."""
    from scipy.stats import rankdata

    matrix = np.full((n, n), np.nan)
    a, b = part["expert_a"].to_numpy(), part["expert_b"].to_numpy()
    matrix[a, b] = matrix[b, a] = rankdata(part["similarity"].to_numpy(dtype=float), nan_policy="omit")
    return matrix


def mantel(first: np.ndarray, second: np.ndarray, *, permutations: int = 999, seed: int = 0) -> tuple[float, float]:
    """Correlate the upper triangles of two symmetric matrices; two-sided p by permuting rows and columns of one.

    Mantel 1967, Cancer Research 27:209. Pairs that are NaN in either matrix are left out.

    Parameters
    ----------
    first, second : ndarray of float, shape (n, n)
    permutations : int
        Number of permutations.
    seed : int
        Seed of the permutations.

    Returns
    -------
    correlation, p_value : float
        NaN where fewer than three pairs are known, or one matrix is constant.
    """
    n = len(first)
    known = ~(np.isnan(first) | np.isnan(second)) & ~np.eye(n, dtype=bool)
    x, y = first[known], second[known]
    if len(x) < 6 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    # pairs unknown in one matrix get its mean, and so weigh nothing wherever a permutation puts them
    one = np.where(known, first - x.mean(), 0.0) / (x.std() * np.sqrt(len(x)))
    other = np.where(known, second - y.mean(), 0.0) / (y.std() * np.sqrt(len(y)))
    observed = float((one * other).sum())
    rng = np.random.default_rng(seed)
    exceed = 0
    for _ in range(permutations):
        order = rng.permutation(n)
        moved = other.take(order, axis=0).take(order, axis=1)
        exceed += abs(float(np.vdot(one, moved))) >= abs(observed) - 1e-12
    return observed, float(permutation_p(np.array(exceed), permutations))
