"""The run card: what was run on what, with which settings; and the list of data files behind the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.core.text import sentences
from moe_probe.recording.trace.facts import is_imported, made_with, not_in_record
from moe_probe.report.cells import number, probability
from moe_probe.report.content import Facts, Section, Table

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.core.schema import Manifest


def short_name(name: str) -> str:
    """Return the last two parts of a path or repository name: enough to recognise it, nothing of the machine."""
    return "/".join(name.rstrip("/").split("/")[-2:])


def card_section(m: Manifest, results: Mapping[str, Result]) -> Section:
    """Say what was run on what.

    Parameters
    ----------
    m : Manifest
        Of the trace.
    results : mapping of str to Result

    Returns
    -------
    Section
    """
    finding = f"{short_name(m.model.id)} on {m.corpus.name}: {m.n_documents:,} documents, {m.n_tokens:,} tokens."
    return Section(title="Run card", finding=finding, blocks=(Facts(tuple(_facts(m, results).items()), kind="card"),))


def _facts(m: Manifest, results: Mapping[str, Result]) -> dict[str, str]:
    experts = ", ".join(str(n) for n in sorted({x.num_experts for x in m.layers}))
    slots = ", ".join(str(n) for n in sorted({x.top_k for x in m.layers}))
    size = f", {m.model.n_parameters / 1e6:,.1f} M parameters" if m.model.n_parameters else ""
    weights = "unknown (imported trace)"
    if m.model.fingerprint:
        weights = f"{m.model.dtype}; fingerprint of routers and experts {m.model.fingerprint[:16]}"
    corpus_hash = f", hash {m.corpus.hash[:16]}" if m.corpus.hash else ""
    card = {
        "model": short_name(m.model.id) + (f" at {m.model.revision}" if m.model.revision else ""),
        "architecture": f"{m.model.architecture}{size}",
        "weights": weights,
        "routing": f"{len(m.layers)} layers, experts {experts}, top-k {slots}, gate weights "
        f"{'recorded' if m.has_weights else 'unknown'}",
        "evidence": str(m.evidence),
        "corpus": f"{m.corpus.name}, {m.n_documents:,} documents, {m.n_tokens:,} tokens{corpus_hash}",
    }
    if m.windowing:
        card["windows"] = (
            f"at most {m.windowing.max_length:,} tokens; longer documents in windows that repeat "
            f"{m.windowing.overlap:,} tokens of context"
        )
    if "expert_topics" in results:
        params = results["expert_topics"].params
        within = f" within {params['strata']}" if params["strata"] else ""
        card["statistics"] = (
            f"{params['topics']} {params['label']}s over {params['groups']:,} independent groups of documents. "
            + (
                "No test is possible."
                if params["model_p"] is None
                else f"{params['permutations']:,} permutations{within}; error rate {params['alpha']:g}; halves "
                f"{params['halves']}. Whether any layer depends on the {params['label']}: p {probability(params['model_p'])}."
            )
        )
        card["seed"] = str(results["expert_topics"].seed)
    if is_imported(m):
        card |= {"made with": made_with(m), "not in the record": " ".join(not_in_record(m))}
    else:
        card["versions"] = ", ".join(f"{k} {v}" for k, v in m.versions.items())
    again = "moe-probe run --config run.yaml --out NEW (run.yaml is in the folder of this report)"
    card["repeat with"] = "moe-probe analyze RUN, on the imported trace" if is_imported(m) else again
    return card


def files_section(results: Mapping[str, Result]) -> Section:
    """List the tables that this report was made from, and the content of each."""
    rows = tuple(
        (
            f"results/{name}.parquet",
            number(len(result.table)),
            next(iter(sentences(result.caption)), "–"),
            ", ".join(str(c) for c in result.table.columns),
        )
        for name, result in sorted(results.items())
    )
    return Section(
        title="The data behind this report",
        finding=f"{len(rows)} tables in results/ contain every number shown here, and more.",
        blocks=(
            Table(
                ("file", "rows", "content", "columns"),
                rows,
                heading=f"{len(rows)} tables",
                note="Each has a .json beside it with parameters, seed, full caption and sources. The command moe-probe "
                "report RUN makes this page again from them, and all figures as PNG, SVG and PDF in figures/. It needs no model.",
            ),
        ),
    )
