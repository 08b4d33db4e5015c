"""Metrics of published work that compare domains, from counts of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.routing import count_selections
from moe_probe.core.stats import labelled_documents
from moe_probe.experts.published.choices import OLMOE, first_choices, weight_warnings

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage
    from moe_probe.core.schema import MoeLayer
    from moe_probe.recording.trace import Trace

_ESFT = "Wang et al. 2024 (ESFT), relevance of experts for a task, arXiv:2407.01906"


def domain_specialisation(selections: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Compute the share of a domain's tokens that have an expert among their choices.

    Domain specialisation(E, D) = N(E, D, k) / N(D), with N(E, D, k) the tokens of domain D that have E among
    their k experts; a router without preferences gives k / E. OLMoE, arXiv:2409.02060, section 5.3.

    Parameters
    ----------
    selections : ndarray of int, shape (..., n_domains, n_experts)
        All choices, or first choices only.
    tokens : ndarray of int, shape (..., n_domains)
        Tokens of each domain.

    Returns
    -------
    ndarray of float, shape (..., n_domains, n_experts)
    """
    return np.asarray(selections / np.asarray(tokens)[..., None])


def domain_table(trace: Trace | Usage, *, label: str = "topic", first: bool = False) -> Result:
    """Measure the domain specialisation of every expert for every label, by all choices or by first choices.

    Special tokens and documents without a label are left out. OLMoE, arXiv:2409.02060, section 5.3.

    Parameters
    ----------
    trace : Trace or Usage
        First choices need a trace with routing.
    label : str
        Label column of the domains.
    first : bool
        Count the expert of highest gate weight only (the authors' k = 1).

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
    if first:
        counts, warnings = _first_choice_counts(trace, of_document, len(names))
    else:
        counts, warnings = _counts(usage, of_document, len(names)), ()
    parts = []
    for layer, count in zip(usage.layers, counts, strict=True):
        value = domain_specialisation(count, np.maximum(tokens, 1))
        part = _by_domain(layer, "domain", names, {"specialisation": value})
        parts.append(part.assign(baseline=(1 if first else layer.top_k) / layer.num_experts))
    return Result(
        "domain_specialisation",
        pd.concat(parts, ignore_index=True),
        params={"label": label, "first": first},
        citations=(OLMOE,),
        warnings=warnings,
        caption=f"Share of a domain's tokens that have the expert {'as first choice' if first else 'among their choices'}. "
        "Compare with the baseline, that of a router without preferences.",
    )


def _first_choice_counts(trace: Trace | Usage, of_document: np.ndarray, n: int) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Count first choices by domain, per layer of shape (n_domains, n_experts); and warn where they are guessed."""
    from moe_probe.core.routing import Usage

    if isinstance(trace, Usage):
        raise MoeProbeError(
            "first choices cannot be counted", "usage holds all choices of a document together", "a trace with routing"
        )
    counts = [np.zeros((n, layer.num_experts)) for layer in trace.layers]
    for chunk in trace.iter_routing():
        unit = np.where(chunk.special, -1, of_document[chunk.document])
        first = first_choices(chunk.experts, chunk.weights)
        for index, layer in enumerate(trace.layers):
            counts[index] += count_selections(first[:, index, None], unit=unit, n_units=n, num_experts=layer.num_experts)
    return counts, weight_warnings(trace)


def esft_scores(trace: Trace | Usage, *, label: str = "topic", p: float = 0.2, digits: int | None = None) -> Result:
    """Score the relevance of every expert to every label by ESFT's two scores, and mark the smallest set that reaches p.

    Token selection ratio: r = mean over a task's tokens of 1[expert chosen] / k; average gate score: g =
    mean over its tokens of the gate weight. The experts of highest score whose sum first reaches p are
    those ESFT would tune. arXiv:2407.01906, section 3.2, equations 4 to 6. Where a router's chosen weights do not add up to 1,
    neither do the gate scores of a layer; so that p means the same for both, experts are chosen by their share of that sum.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
        Label column of the tasks.
    p : float
        Share of a task's selections, or gate mass, that the chosen experts reach (0 to 1).
    digits : int, optional
        Round scores before experts are chosen, as ESFT's authors do (4): it decides which of two equal ones comes first.

    Returns
    -------
    Result
        ``esft``: ``layer, expert, task, token_selection_ratio, average_gate_score`` (NaN without weights), ``gate_share`` (of
        the layer's gate mass), ``chosen_by_ratio, chosen_by_gate``.

    Raises
    ------
    MoeProbeError
        When documents have no such label.
    """
    import pandas as pd

    usage = trace.usage()
    names, of_document = _domains(usage, label)
    counts = _counts(usage, of_document, len(names))
    masses = _counts(usage, of_document, len(names), measure="gate_mass") if usage.has_gate_mass else None
    tokens = np.zeros(len(names))
    np.add.at(tokens, of_document[of_document >= 0], usage.documents["n_tokens"].to_numpy()[of_document >= 0])
    parts = []
    for index, layer in enumerate(usage.layers):
        ratio, unknown = _normalised(counts[index]), np.full(counts[index].shape, np.nan)
        share = unknown if masses is None else _normalised(masses[index])
        ranked = (ratio, share) if digits is None else (ratio.round(digits), share.round(digits))
        with np.errstate(invalid="ignore"):
            values = {
                "token_selection_ratio": ratio,
                "average_gate_score": unknown if masses is None else masses[index] / tokens[:, None],
                "gate_share": share,
                "chosen_by_ratio": smallest_set(ranked[0], p),
                "chosen_by_gate": smallest_set(ranked[1], p),
            }
        parts.append(_by_domain(layer, "task", names, values))
    return Result(
        "esft",
        pd.concat(parts, ignore_index=True),
        params={"label": label, "p": p, "digits": digits},
        citations=(_ESFT,),
        caption=f"ESFT's relevance scores of every expert for every {label}. Chosen are the experts of the highest scores, "
        f"until their sum reaches {p:g}: those that ESFT would tune.",
    )


def smallest_set(scores: np.ndarray, p: float) -> np.ndarray:
    """Mark, in every row, the highest scores up to the one with which their sum reaches p.

    Parameters
    ----------
    scores : ndarray of float, shape (..., n_experts)
    p : float
        Sum to reach.

    Returns
    -------
    ndarray of bool, same shape
        False where the score is NaN.
    """
    order = np.argsort(-np.nan_to_num(scores), axis=-1, kind="stable")
    ranked = np.take_along_axis(np.nan_to_num(scores), order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, order, before < p, axis=-1)
    return np.asarray(chosen & ~np.isnan(scores))


def _domains(usage: Usage, label: str) -> tuple[list[str], np.ndarray]:
    """List the labels, and code each document's label, shape (n_documents,); -1 without a label."""
    keep, labels, _ = labelled_documents(usage.documents, label=label)
    names, code = np.unique(labels[keep].astype(str), return_inverse=True)
    of_document = np.full(len(keep), -1)
    of_document[keep] = code
    return [str(n) for n in names], of_document


def _counts(usage: Usage, of_document: np.ndarray, n: int, *, measure: str = "selections") -> list[np.ndarray]:
    """Sum a measure over domains, per layer of shape (n_domains, n_experts)."""
    summed = usage.summed(of_document, n, measure=measure)
    return [summed[:, columns] for columns in usage.columns]


def _summed(values: np.ndarray, code: np.ndarray, n: int) -> np.ndarray:
    """Sum values (n_documents, n_columns) over documents of one code, shape (n, n_columns); -1 is left out."""
    out = np.zeros((n, values.shape[1]))
    np.add.at(out, code[code >= 0], values[code >= 0])
    return out


def _by_domain(layer: MoeLayer, column: str, names: list[str], values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Lay out values (n_domains, n_experts) of one layer; rows by domain, then expert."""
    import pandas as pd

    keys = {
        "layer": layer.layer,
        "expert": np.tile(np.arange(layer.num_experts), len(names)),
        column: np.repeat(names, layer.num_experts),
    }
    return pd.DataFrame(keys | {name: value.ravel() for name, value in values.items()})


def _normalised(values: np.ndarray) -> np.ndarray:
    """Divide by the sum over the last axis."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(values / values.sum(-1, keepdims=True))
