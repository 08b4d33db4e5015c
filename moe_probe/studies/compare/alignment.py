"""Which expert of one model is which of another, by what they do on documents and tokens that both have read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.routing import count_selections, dropped_id
from moe_probe.core.stats import permutation_p
from moe_probe.studies.compare.compared_run import ComparedRun, matched_layers, same_shape
from moe_probe.studies.compare.pairing import Pairing, pair_runs
from moe_probe.studies.compare.settings import ComparisonSettings

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

_SOURCES = (
    "Kuhn 1955, the assignment problem, DOI 10.1002/nav.3800020109",
    "Jaccard 1912, overlap of two sets, DOI 10.1111/j.1469-8137.1912.tb05611.x",
    "Phipson and Smyth 2010, permutation p-values are never zero, DOI 10.2202/1544-6115.1585",
)
#: Tokens that experts are matched by, at most.
_MOST_TOKENS = 10_000_000


class Aligned(NamedTuple):
    """Two results: ``aligned_experts`` and its sums per layer, ``aligned_layers``."""

    experts: Result
    layers: Result


class _Match(NamedTuple):
    """One layer under one measure.

    Attributes
    ----------
    scores : ndarray, shape (n_experts, n_other_experts)
    null : ndarray, shape (n_experts,)
        Mean score that the null gives each expert.
    null_mean, null_high, p_value : float
        Of the mean score under the null: its mean, its 95th percentile and the p-value (NaN for tokens).
    """

    scores: np.ndarray
    null: np.ndarray
    null_mean: float
    null_high: float = np.nan
    p_value: float = np.nan


def align_experts(
    a: ComparedRun, b: ComparedRun, *, pairing: Pairing | None = None, settings: ComparisonSettings | None = None
) -> Aligned:
    """Assign the experts of one run to those of the other, layer by layer, so that matched ones behave alike.

    Two measures, each with an assignment of its own (Hungarian method, largest sum of scores). ``documents``: correlation
    of the experts' usage shares over the groups of documents that both runs share; its null is the same with the documents
    of one run permuted within topics, so that what the topic alone explains is in the null. ``tokens``, where tokens are
    the same in both: of the tokens that chose either expert, the share that chose both (Jaccard); its null is what would be
    expected were the choices of one run exchanged among the tokens of each document.

    Parameters
    ----------
    a, b : ComparedRun
    pairing : Pairing, optional
        From `pair_runs`, where it is at hand.
    settings : ComparisonSettings, optional

    Returns
    -------
    Aligned
        ``aligned_experts``: ``side_a, side_b, measure, layer, expert, other_layer, other_expert`` (missing where the other
        has fewer experts), ``score, null`` (mean score that the expert is given under the null), ``second_best`` (highest
        score of another expert), ``second_expert``, ``same_number_score`` (of the expert of the same number; NaN for
        models of different shape). ``aligned_layers``: ``side_a, side_b, measure, layer, other_layer, mean_score,
        null_mean, null_high`` (95th percentile; NaN for tokens), ``p_value`` (NaN for tokens), ``same_number_mean,
        same_number_share`` (of experts matched to their own number), ``experts``.

    Raises
    ------
    MoeProbeError
        When the runs share too few documents.
    """
    import pandas as pd

    settings = settings or ComparisonSettings()
    pairing = pairing or pair_runs(a, b)
    if not pairing.paired:
        raise MoeProbeError(
            f"experts of {a.name} and {b.name} cannot be aligned",
            f"they are matched by what they do on the same documents: {pairing.shared.how}",
            "two runs on one corpus",
        )
    notes = list(pairing.notes)
    tokens = None if pairing.shared.no_tokens else _SameTokens(a, b, pairing, settings.seed)
    notes += [pairing.shared.no_tokens] if tokens is None else tokens.notes
    pairs, _ = matched_layers(a, b)
    comparable = same_shape(a, b)
    experts: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for number, (layer, other) in enumerate(pairs):
        rng = np.random.default_rng([settings.seed, number])
        matches = {"documents": _by_documents(pairing, (layer, other), settings.permutations, rng)}
        if tokens is not None:
            matches["tokens"] = tokens.match(layer, other)
        for measure, match in matches.items():
            rows, total = _rows(match, comparable=comparable)
            where = {"side_a": a.name, "side_b": b.name, "measure": measure, "layer": layer}
            experts += [where | {"expert": row.pop("expert"), "other_layer": other} | row for row in rows]
            layers.append(where | {"other_layer": other} | total)
    table = pd.DataFrame(experts).astype({"other_expert": "Int64", "second_expert": "Int64"})
    result = Result(
        "aligned_experts",
        table,
        seed=settings.seed,
        params={"permutations": settings.permutations},
        warnings=tuple(notes),
        caption=_caption(len(pairing.groups[0].groups), settings.permutations),
        citations=_SOURCES,
    )
    return Aligned(result, replace(result, name="aligned_layers", table=pd.DataFrame(layers)))


def _caption(n_groups: int, permutations: int) -> str:
    return (
        "Experts matched one to one within a layer so that the sum of scores is largest. documents: correlation of "
        f"usage over {n_groups:,} shared groups of documents, null: documents permuted within topics ({permutations} "
        "times); tokens: share of the tokens of either expert that chose both, null: choices exchanged among the tokens "
        "of a document. A match says that two experts are used for the same text, not that they compute the same."
    )


def assign(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the one-to-one assignment with the largest sum (Kuhn 1955, DOI 10.1002/nav.3800020109)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return np.asarray(rows), np.asarray(columns)


def _standard(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    length = np.sqrt((centred**2).sum(0))
    return np.asarray(np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-12))


def _by_documents(pairing: Pairing, layers: tuple[int, int], permutations: int, rng: np.random.Generator) -> _Match:
    usage = [_standard(g.shares[:, g.layer == layer]) for g, layer in zip(pairing.groups, layers, strict=True)]
    scores = usage[0].T @ usage[1]
    topic = pairing.groups[0].topic
    topic_rows = [np.flatnonzero(topic == t) for t in np.unique(topic)]
    given, means = np.zeros(scores.shape[0]), np.empty(permutations)
    for i in range(permutations):
        order = np.arange(len(topic))
        for members in topic_rows:
            order[members] = rng.permutation(members)
        permuted = usage[0].T @ usage[1][order]
        rows, columns = assign(permuted)
        given[rows] += permuted[rows, columns]
        means[i] = permuted[rows, columns].mean()
    observed = scores[assign(scores)].mean()
    exceed = np.array((means >= observed - 1e-12).sum())
    return _Match(
        scores,
        given / permutations,
        float(means.mean()),
        float(np.quantile(means, 0.95)),
        float(permutation_p(exceed, permutations)),
    )


def _rows(match: _Match, *, comparable: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the experts of one layer, and their sums."""
    scores = match.scores
    matched = dict(zip(*(x.tolist() for x in assign(scores)), strict=True))
    square = comparable and scores.shape[0] == scores.shape[1]
    out: list[dict[str, Any]] = []
    for expert, row in enumerate(scores):
        partner = matched.get(expert)
        others = np.delete(np.arange(len(row)), partner) if partner is not None else np.arange(len(row))
        second = int(others[row[others].argmax()]) if len(others) else None
        out.append(
            {
                "expert": expert,
                "other_expert": partner,
                "score": np.nan if partner is None else float(row[partner]),
                "null": float(match.null[expert]),
                "second_best": np.nan if second is None else float(row[second]),
                "second_expert": second,
                "same_number_score": float(row[expert]) if square else np.nan,
            }
        )
    matched_scores = [float(r["score"]) for r in out if r["other_expert"] is not None]
    own_number = [bool(r["other_expert"] == r["expert"]) for r in out]
    return out, {
        "mean_score": float(np.mean(matched_scores)),
        "null_mean": match.null_mean,
        "null_high": match.null_high,
        "p_value": match.p_value,
        "same_number_mean": float(np.diag(scores).mean()) if square else np.nan,
        "same_number_share": float(np.mean(own_number)) if square else np.nan,
        "experts": len(matched_scores),
    }


class _SameTokens:
    """The tokens that are the same in both traces, in the same order; of more than `_MOST_TOKENS`, those of some documents."""

    def __init__(self, a: ComparedRun, b: ComparedRun, pairing: Pairing, seed: int) -> None:
        assert a.trace is not None
        assert b.trace is not None
        shared = pairing.shared
        keep, self.notes = _drawn(shared.same_tokens, a.trace.documents["n_tokens"].to_numpy()[shared.rows_a], seed)
        self.traces = a.trace, b.trace
        number = [np.full(len(t.documents), -1) for t in self.traces]
        number[0][shared.rows_a[keep]] = number[1][shared.rows_b[keep]] = np.arange(int(keep.sum()))
        self.n_documents = int(keep.sum())
        (rows_a, self.document), (rows_b, _) = (_token_rows(t, n) for t, n in zip(self.traces, number, strict=True))
        self.rows = rows_a, rows_b

    def match(self, layer: int, other: int) -> _Match:
        """Overlap of the choices of two layers, and what exchange within documents would give."""
        chosen = [_chosen(t, x, rows) for t, x, rows in zip(self.traces, (layer, other), self.rows, strict=True)]
        sizes = [t.layers[t.layer_index(x)].num_experts for t, x in zip(self.traces, (layer, other), strict=True)]
        counts = [
            count_selections(c, unit=self.document, n_units=self.n_documents, num_experts=n).astype(float)
            for c, n in zip(chosen, sizes, strict=True)
        ]
        both = _both(chosen[0], chosen[1], *sizes)
        tokens = np.bincount(self.document, minlength=self.n_documents)[:, None]
        expected = (counts[0] / np.maximum(tokens, 1)).T @ counts[1]
        either = counts[0].sum(0)[:, None] + counts[1].sum(0)[None]
        scores, null = (np.divide(x, either - x, out=np.zeros_like(x), where=either > x) for x in (both, expected))
        rows, columns = assign(null)
        given = np.zeros(sizes[0])
        given[rows] = null[rows, columns]
        return _Match(scores, given, float(null[rows, columns].mean()))


def _drawn(same: np.ndarray, n_tokens: np.ndarray, seed: int) -> tuple[np.ndarray, list[str]]:
    """Choose documents of the same tokens, both (n_shared,), until they have `_MOST_TOKENS`; and say so where some are left."""
    order = np.random.default_rng([seed, 11]).permutation(np.flatnonzero(same))
    within = order[np.cumsum(n_tokens[order]) <= _MOST_TOKENS]
    if len(within) == len(order):
        return same, []
    drawn = np.zeros(len(same), dtype=bool)
    drawn[within] = True
    part = f"{int(n_tokens[within].sum()):,} of {int(n_tokens[same].sum()):,}"
    return drawn, [f"Experts are matched by tokens on {part} tokens, those of documents drawn at random."]


def _token_rows(trace: Trace, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the tokens of numbered documents, by number, and the number of each; special tokens are skipped."""
    parts, numbers = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for _, chunk in trace.iter_tokens(["document", "special"], documents=number >= 0):
        document = number[chunk.columns["document"]]
        kept = np.flatnonzero((document >= 0) & ~chunk.columns["special"])
        parts.append(kept + chunk.first)
        numbers.append(document[kept])
    rows, documents = np.concatenate(parts), np.concatenate(numbers)
    order = np.argsort(documents, kind="stable")
    return rows[order], documents[order]


def _chosen(trace: Trace, layer: int, rows: np.ndarray) -> np.ndarray:
    """Experts of some tokens, shape (n_rows, top_k)."""
    index = trace.layer_index(layer)
    return trace.routing_at(rows, slice(index, index + 1)).experts[:, 0]


def _both(a: np.ndarray, b: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Tokens that chose expert i in one and expert j in the other, shape (n_a, n_b)."""
    out = np.zeros(n_a * n_b)
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            keep = (a[:, i] != dropped_id(a.dtype)) & (b[:, j] != dropped_id(b.dtype))
            out += np.bincount(a[keep, i].astype(np.int64) * n_b + b[keep, j], minlength=n_a * n_b)
    return out.reshape(n_a, n_b)
