"""Metrics of published work that compare domains or sets of prompts, from counts of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError, did_you_mean
from moe_probe.core.results import Result
from moe_probe.core.routing import count_selections
from moe_probe.core.stats import labelled_documents
from moe_probe.experts.published.sequences import NO_WEIGHTS, first_choices

if TYPE_CHECKING:
    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace

_OLMOE = "Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060"
_ESFT = "Wang et al. 2024 (ESFT), arXiv:2407.01906"
_STEER = "Fayyaz et al. 2025 (SteerMoE), arXiv:2509.09660"


def domain_specialisation(selections: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Share of a domain's tokens that have an expert among their choices.

    Domain specialisation(E, D) = N(E, D, k) / N(D), with N(E, D, k) the tokens of domain D that have E among
    their k experts; a router without preferences gives k / E. OLMoE, arXiv:2409.02060, section 5.3.

    Parameters
    ----------
    selections : ndarray of int, shape (..., n_domains, n_experts)
    tokens : ndarray of int, shape (..., n_domains)
        Tokens of each domain. For first choices alone, ``selections`` counts those.

    Returns
    -------
    ndarray of float, shape (..., n_domains, n_experts)
    """
    return np.asarray(selections / np.asarray(tokens)[..., None])


def domain_table(trace: Trace | Usage, *, label: str = "topic", first: bool = False) -> Result:
    """Domain specialisation of every expert for every label, by all choices or by first choices.

    Special tokens and documents without a label are left out.

    Parameters
    ----------
    trace : Trace or Usage
        First choices need a trace with routing.
    label : str
    first : bool
        Count the expert of highest gate weight alone (the authors' k = 1).

    Returns
    -------
    Result
        ``domain_specialisation``: ``layer, expert, domain, specialisation, baseline`` (k / E, or 1 / E).

    Raises
    ------
    MoeProbeError
        When documents have no such label, or first choices are asked of counts.
    """
    import pandas as pd

    usage = trace.usage()
    names, of_document = _domains(usage, label)
    tokens = _summed(usage.documents["n_tokens"].to_numpy()[:, None], of_document, len(names))[:, 0]
    counts = [
        _summed(usage.selections[:, place, : layer.num_experts], of_document, len(names))
        for place, layer in enumerate(usage.layers)
    ]
    warnings: tuple[str, ...] = ()
    if first:
        counts, warnings = _first_choice_counts(trace, of_document, len(names))
    parts = []
    for layer, count in zip(usage.layers, counts, strict=True):
        value = domain_specialisation(count, np.maximum(tokens, 1))
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer.layer,
                    "expert": np.tile(np.arange(layer.num_experts), len(names)),
                    "domain": np.repeat(names, layer.num_experts),
                    "specialisation": value.ravel(),
                    "baseline": (1 if first else layer.top_k) / layer.num_experts,
                }
            )
        )
    return Result(
        "domain_specialisation",
        pd.concat(parts, ignore_index=True),
        params={"label": label, "first": first},
        citations=(_OLMOE,),
        warnings=warnings,
        caption=f"Share of a domain's tokens that have the expert {'as first choice' if first else 'among their choices'}.",
    )


def _first_choice_counts(trace: Trace | Usage, of_document: np.ndarray, n: int) -> tuple[list[np.ndarray], tuple[str, ...]]:
    from moe_probe.core.routing import Usage

    if isinstance(trace, Usage):
        raise MoeProbeError(
            "first choices cannot be counted", "usage holds all choices of a document together", "a trace with routing"
        )
    counts = [np.zeros((n, layer.num_experts)) for layer in trace.layers]
    for chunk in trace.iter_routing():
        unit = np.where(chunk.special, -1, of_document[chunk.document])
        first = first_choices(chunk.experts, chunk.weights)
        for place, layer in enumerate(trace.layers):
            counts[place] += count_selections(first[:, place, None], unit=unit, n_units=n, num_experts=layer.num_experts)
    return counts, () if trace.manifest.has_weights else (NO_WEIGHTS,)


def esft_scores(trace: Trace | Usage, *, label: str = "topic", p: float = 0.2) -> Result:
    """Relevance of every expert to every label by ESFT's two scores, and the smallest set that holds a share p.

    Token selection ratio: r = mean over a task's tokens of 1[expert chosen] / k; average gate score: g =
    mean over its tokens of the gate weight. The experts of highest score whose sum first reaches p are
    those ESFT would tune. arXiv:2407.01906, section 3.2, equations 4 to 6.

    Returns
    -------
    Result
        ``esft``: ``layer, expert, task, token_selection_ratio, average_gate_score`` (share of the gate mass;
        NaN without weights), ``chosen_by_ratio, chosen_by_gate``.

    Raises
    ------
    MoeProbeError
        When documents have no such label.
    """
    import pandas as pd

    usage = trace.usage()
    names, of_document = _domains(usage, label)
    parts = []
    for place, layer in enumerate(usage.layers):
        cut = slice(0, layer.num_experts)
        ratio = _normalised(_summed(usage.selections[:, place, cut], of_document, len(names)))
        gate = np.full(ratio.shape, np.nan)
        if usage.gate_mass is not None:
            gate = _normalised(_summed(usage.gate_mass[:, place, cut], of_document, len(names)))
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer.layer,
                    "expert": np.tile(np.arange(layer.num_experts), len(names)),
                    "task": np.repeat(names, layer.num_experts),
                    "token_selection_ratio": ratio.ravel(),
                    "average_gate_score": gate.ravel(),
                    "chosen_by_ratio": smallest_set(ratio, p).ravel(),
                    "chosen_by_gate": smallest_set(gate, p).ravel(),
                }
            )
        )
    return Result(
        "esft",
        pd.concat(parts, ignore_index=True),
        params={"label": label, "p": p},
        citations=(_ESFT,),
        caption=f"ESFT's relevance scores; chosen: the highest until their sum reaches {p:g}.",
    )


def smallest_set(scores: np.ndarray, p: float) -> np.ndarray:
    """Mark, in every row, the highest scores up to the one with which their sum reaches p (boolean, same shape)."""
    order = np.argsort(-np.nan_to_num(scores), axis=-1, kind="stable")
    ranked = np.take_along_axis(np.nan_to_num(scores), order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, order, before < p, axis=-1)
    return chosen & ~np.isnan(scores)


def risk_difference(
    trace: Trace | Usage, *, column: str, positive: str, negative: str, paired_by: str | None = None
) -> Result:
    """How much more often tokens of one set of documents activate an expert than those of another.

    SteerMoE, arXiv:2509.09660, equation 3: P(active | positive) - P(active | negative) over tokens, with the
    two-proportion z-test that its authors use. That test takes tokens for independent; beside it stands the
    test that respects documents: t of the documents' rates (Welch, or of differences within pairs).

    Parameters
    ----------
    column : str
        Label column whose values name the two sets.
    positive, negative : str
    paired_by : str, optional
        Column that names the pair a document belongs to (one positive and one negative document each).

    Returns
    -------
    Result
        ``risk_difference``: ``layer, expert, positive_rate, negative_rate, difference, z, z_p_value``
        (tokens), ``document_t, document_p_value, documents``.

    Raises
    ------
    MoeProbeError
        When a set is empty, or pairs are incomplete.
    """
    import pandas as pd
    from scipy import stats

    usage = trace.usage()
    documents = usage.documents
    for name in (column, *(() if paired_by is None else (paired_by,))):
        if name not in documents.columns:
            raise MoeProbeError(
                f"documents have no column '{name}'",
                did_you_mean(name, list(documents.columns)),
                "name a label column of the corpus",
            )
    rows = [np.flatnonzero((documents[column].astype(str) == value).to_numpy()) for value in (positive, negative)]
    for value, found in zip((positive, negative), rows, strict=True):
        if len(found) < 2:
            raise MoeProbeError(
                f"{len(found)} documents have the {column} '{value}'",
                "two are the least to compare",
                "other values of the column",
            )
    if paired_by is not None:
        rows = _paired(documents[paired_by].astype(str).to_numpy(), rows, paired_by)
    parts = []
    for place, layer in enumerate(usage.layers):
        counts = usage.selections[:, place, : layer.num_experts]
        tokens = documents["n_tokens"].to_numpy()
        a, b = (counts[r].sum(0) / tokens[r].sum() for r in rows)
        n, m = (tokens[r].sum() for r in rows)
        pooled = (a * n + b * m) / (n + m)
        rates = [counts[r] / np.maximum(tokens[r], 1)[:, None] for r in rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (a - b) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
            by_document = stats.ttest_rel(*rates) if paired_by else stats.ttest_ind(*rates, equal_var=False)
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer.layer,
                    "expert": np.arange(layer.num_experts),
                    "positive_rate": a,
                    "negative_rate": b,
                    "difference": a - b,
                    "z": z,
                    "z_p_value": 2 * stats.norm.sf(np.abs(z)),
                    "document_t": by_document.statistic,
                    "document_p_value": by_document.pvalue,
                    "documents": len(rows[0]) + len(rows[1]),
                }
            )
        )
    return Result(
        "risk_difference",
        pd.concat(parts, ignore_index=True),
        citations=(_STEER,),
        params={"column": column, "positive": positive, "negative": negative, "paired_by": paired_by},
        caption="Activation rate among tokens of the positive set less that of the negative one. The z-test takes "
        "tokens for independent and overstates its case; the document test does not.",
    )


def _paired(pair: np.ndarray, rows: list[np.ndarray], name: str) -> list[np.ndarray]:
    keys = [pair[r] for r in rows]
    if any(len(set(k)) < len(k) for k in keys) or set(keys[0]) != set(keys[1]):
        raise MoeProbeError(
            f"documents cannot be paired by '{name}'",
            "every pair needs one document of either set",
            "a column with one value a pair, or no pairing",
        )
    return [r[np.argsort(k, kind="stable")] for r, k in zip(rows, keys, strict=True)]


def _domains(usage: Usage, label: str) -> tuple[list[str], np.ndarray]:
    """Names of the labels, and each document's number among them (-1 without a label)."""
    keep, labels, _ = labelled_documents(usage.documents, label=label)
    names, code = np.unique(labels[keep].astype(str), return_inverse=True)
    of_document = np.full(len(keep), -1)
    of_document[keep] = code
    return [str(n) for n in names], of_document


def _summed(values: np.ndarray, code: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((n, values.shape[1]))
    np.add.at(out, code[code >= 0], values[code >= 0])
    return out


def _normalised(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(values / values.sum(-1, keepdims=True))
