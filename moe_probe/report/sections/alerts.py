"""What a reader must know before believing the rest: alerts, and what was checked without raising one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from moe_probe.core.generation import differing_settings
from moe_probe.core.schema import Evidence
from moe_probe.core.stats import group_names
from moe_probe.core.text import listed
from moe_probe.experts.collapse import collapsed_layers
from moe_probe.report.cells import number, sae_name
from moe_probe.report.content import Block, Facts, Section

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

#: Groups of documents under which a topic's own expert is easily missed.
_FEW_GROUPS = 20
#: Agreement of clusters between subsamples (AMI) under which they are not to be relied on.
_STABLE = 0.6
#: Loss recovered, share of dead latents, and variance unexplained beyond which an SAE's features are weak evidence.
_RECOVERED, _DEAD, _UNEXPLAINED = 0.8, 0.2, 0.4


def alerts_section(trace: Trace, results: Mapping[str, Result]) -> Section:
    """Run every check; name those that raise an alert, and those that do not.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result

    Returns
    -------
    Section
    """
    outcomes = {name: check(trace, results) for name, (needs, check) in _CHECKS.items() if not needs or needs in results}
    alerts = tuple((name, text) for name, text in outcomes.items() if text)
    fine = [_small(name) for name, text in outcomes.items() if not text]
    notes = _warnings(results)
    blocks: list[Block] = [Facts(alerts, kind="alerts")] if alerts else []
    blocks += [f"Checked without an alert: {listed(fine)}."] if fine else []
    blocks += [Facts(tuple(notes), kind="notes")] if notes else []
    finding = f"{len(alerts)} alert{'' if len(alerts) == 1 else 's'}: {listed([_small(name) for name, _ in alerts])}."
    return Section(title="Read with this in mind", finding=finding if alerts else "No alert.", blocks=tuple(blocks))


def _few(trace: Trace) -> str:
    if trace.manifest.evidence is Evidence.COUNTS:
        return "The record has sums by topic only: lifts are effects without any test."
    groups = trace.documents.assign(group=group_names(trace.documents)).groupby("topic")["group"].nunique()
    few = groups[groups < _FEW_GROUPS]
    if few.empty:
        return ""
    return (
        f"With fewer than {_FEW_GROUPS} independent documents, a topic's own expert can be missed. "
        f"This concerns {listed([f'{topic} ({n})' for topic, n in few.items()], 8)}."
    )


def _weights(trace: Trace) -> str:
    if trace.manifest.has_weights:
        return ""
    return "Gate weights are unknown: an expert selected with a small weight counts as much as any other."


def _skipped(trace: Trace) -> str:
    n = trace.manifest.corpus.skipped_rows
    return f"{n:,} bad rows of the corpus were skipped." if n else ""


def _dead(results: Mapping[str, Result]) -> str:
    table = results["experts"].table
    dead = table[table["load"] == 0]
    if dead.empty:
        return ""
    return (
        f"{len(dead)} of {len(table)} experts were never selected on this corpus (layers "
        f"{listed([str(x) for x in sorted(dead['layer'].unique())], 12)})."
    )


def _collapse(trace: Trace, results: Mapping[str, Result]) -> str:
    layers = [f"in layer {layer}, {why}" for layer, why in collapsed_layers(trace.layers, results).items()]
    return f"{listed(layers, 8)}." if layers else ""


def _unstable(results: Mapping[str, Result]) -> str:
    table = results["cluster_summary"].table
    loose = table[(table["k"] > 1) & (table["stability_ami"] < _STABLE)]
    units = [f"{r.unit}s (AMI {number(float(r.stability_ami))})" for r in loose.itertuples()]
    return f"Clusters of {listed(units)} change from subsample to subsample: do not rely on single members." if units else ""


def _weak_saes(results: Mapping[str, Result]) -> str:
    weak = []
    for row in results["sae_quality"].table.itertuples():
        faults: list[str] = []
        if row.ce_recovered < _RECOVERED:
            faults.append(f"recovers {row.ce_recovered:.0%} of the effect on the loss")
        if row.dead > _DEAD:
            faults.append(f"has {row.dead:.0%} dead latents")
        if row.fvu > _UNEXPLAINED:
            faults.append(f"leaves {row.fvu:.0%} of the variance unexplained")
        if faults:
            name = sae_name(str(row.sae))
            weak.append(f"{name[:1].upper()}{name[1:]} {listed(faults)}.")
    more = f" So {'does' if len(weak) == 9 else 'do'} {len(weak) - 8} more." if len(weak) > 8 else ""
    return f"{' '.join(weak[:8])}{more} Such features describe only a part of the activation." if weak else ""


def _copies(results: Mapping[str, Result]) -> str:
    return " ".join(results["near_duplicates"].warnings)


#: Checks in the order of the page: the result that each needs ("" for none), and what it says ("" for no alert).
_CHECKS: dict[str, tuple[str, Callable[[Trace, Mapping[str, Result]], str]]] = {
    "Few documents": ("", lambda trace, _: _few(trace)),
    "Dead experts": ("experts", lambda _, results: _dead(results)),
    "Router collapse": ("experts", _collapse),
    "No gate weights": ("", lambda trace, _: _weights(trace)),
    "Unstable clusters": ("cluster_summary", lambda _, results: _unstable(results)),
    "Weak SAEs": ("sae_quality", lambda _, results: _weak_saes(results)),
    "Mixed results": ("", lambda _, results: " ".join(differing_settings(results))),
    "Bad rows": ("", lambda trace, _: _skipped(trace)),
    "Documents that share text": ("near_duplicates", lambda _, results: _copies(results)),
}


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _warnings(results: Mapping[str, Result]) -> list[tuple[str, str]]:
    """List the warnings of the analyses; the same warning of several is listed once."""
    notes = []
    if "left_out" in results:
        by_reason = results["left_out"].table.groupby("reason", sort=False)["analysis"].agg(list)
        notes += [(f"Left out: {listed(names)}", f"{str(reason).rstrip('.')}.") for reason, names in by_reason.items()]
    sources: dict[str, list[str]] = {}
    for result in results.values():
        for warning in result.warnings if result.name != "near_duplicates" else ():  # an alert says it already
            sources.setdefault(warning, []).append(result.name.replace("_", " "))
    for warning, names in sources.items():
        several = listed(names) if len(names) <= 3 else f"{len(names)} analyses"
        notes.append((several[:1].upper() + several[1:], warning))
    return notes
