"""What a reader must know before believing the rest: alerts, and what was checked without raising one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from moe_probe.core.stats import group_names
from moe_probe.report.content import Block, Facts, Section, listed, number, sae_name, some

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

#: Groups of documents under which a topic's own expert is easily missed.
_FEW_GROUPS = 20
#: An expert that this share of a layer's tokens chooses, though an even share would be at most half of that.
_MOST = 0.8
#: Effective experts under this share of the layer's experts.
_NARROW = 0.25
#: Agreement of clusters between subsamples (AMI) under which they are not to be relied on.
_STABLE = 0.6
#: Loss recovered, share of dead latents, and variance unexplained beyond which an SAE is a poor witness.
_RECOVERED, _DEAD, _UNEXPLAINED = 0.8, 0.2, 0.4


def alerts_section(trace: Trace, results: Mapping[str, Result]) -> Section:
    """Run every check; name those that found something, and those that did not."""
    found: list[tuple[str, str]] = []
    fine = []
    for name, check in _CHECKS.items():
        told = check(trace, results)
        if told:
            found.append((name, told))
        elif told is not None:
            fine.append(name)
    notes = _warnings(results)
    finding = (
        f"{len(found)} alert{'' if len(found) == 1 else 's'}: {listed([_small(name) for name, _ in found])}."
        if found
        else "No alert."
    )
    blocks: list[Block] = [Facts(tuple(found), kind="alerts")] if found else []
    blocks += [f"Checked without a finding: {listed([_small(name) for name in fine])}."] if fine else []
    blocks += [Facts(tuple(notes), kind="notes")] if notes else []
    return Section(title="Read with this in mind", finding=finding, blocks=tuple(blocks))


def _few(trace: Trace, results: Mapping[str, Result]) -> str:
    groups = trace.documents.assign(group=group_names(trace.documents)).groupby("topic")["group"].nunique()
    few = groups[groups < _FEW_GROUPS]
    if few.empty:
        return ""
    return (
        f"{some([f'{topic} ({n})' for topic, n in few.items()])}: with fewer than {_FEW_GROUPS} independent documents, "
        "a topic's own expert can be missed."
    )


def _dead(trace: Trace, results: Mapping[str, Result]) -> str | None:
    if "experts" not in results:
        return None
    table = results["experts"].table
    dead = table[table["load"] == 0]
    if dead.empty:
        return ""
    return (
        f"{len(dead)} of {len(table)} experts were never chosen on this corpus (layers "
        f"{some([str(x) for x in sorted(dead['layer'].unique())], 12)})."
    )


def _collapse(trace: Trace, results: Mapping[str, Result]) -> str | None:
    if "experts" not in results:
        return None
    told = []
    effective = results["layers"].table.set_index("layer")["effective_experts"] if "layers" in results else None
    for item in trace.layers:
        part = results["experts"].table
        part = part[part["layer"] == item.layer]
        if part.empty:
            continue
        top = part.loc[part["load"].idxmax()]
        taken, even = float(top["load"]) * item.top_k, item.top_k / item.num_experts
        if taken >= _MOST and even <= taken / 2:
            told.append(f"in layer {item.layer}, expert {int(top['expert'])} serves {min(taken, 1):.0%} of the tokens")
        elif effective is not None and item.layer in effective and effective[item.layer] < _NARROW * item.num_experts:
            told.append(
                f"layer {item.layer} uses no more than {number(float(effective[item.layer]), 1)} of {item.num_experts} "
                "experts, by effective number"
            )
    if not told:
        return ""
    return f"{some(told)}."


def _weights(trace: Trace, results: Mapping[str, Result]) -> str:
    return (
        ""
        if trace.manifest.has_weights
        else ("Gate weights are not known: an expert chosen with little weight counts as much as any other.")
    )


def _unstable(trace: Trace, results: Mapping[str, Result]) -> str | None:
    if "cluster_summary" not in results:
        return None
    table = results["cluster_summary"].table
    loose = table[(table["k"] > 1) & (table["stability_ami"] < _STABLE)]
    said = [f"{r.unit}s (AMI {number(float(r.stability_ami))})" for r in loose.itertuples()]
    return f"Clusters of {listed(said)} change from subsample to subsample: do not build on single members." if said else ""


def _weak_saes(trace: Trace, results: Mapping[str, Result]) -> str | None:
    if "sae_quality" not in results:
        return None
    told = []
    for row in results["sae_quality"].table.itertuples():
        faults = []
        if row.ce_recovered < _RECOVERED:
            faults.append(f"keeps {row.ce_recovered:.0%} of the effect on the loss")
        if row.dead > _DEAD:
            faults.append(f"{row.dead:.0%} dead latents")
        if row.fvu > _UNEXPLAINED:
            faults.append(f"{row.fvu:.0%} of the variance unexplained")
        if faults:
            told.append(f"{sae_name(str(row.sae))} ({listed(faults)})")
    return f"{some(told)}: what its features say is about a part of the activation only." if told else ""


def _skipped(trace: Trace, results: Mapping[str, Result]) -> str:
    n = trace.manifest.corpus.skipped_rows
    return f"{n:,} bad rows of the corpus were left out." if n else ""


def _copies(trace: Trace, results: Mapping[str, Result]) -> str | None:
    if "near_duplicates" not in results:
        return None
    return " ".join(results["near_duplicates"].warnings)


_CHECKS: dict[str, Callable[[Trace, Mapping[str, Result]], str | None]] = {
    "Few documents": _few,
    "Dead experts": _dead,
    "Router collapse": _collapse,
    "No gate weights": _weights,
    "Unstable clusters": _unstable,
    "Weak SAEs": _weak_saes,
    "Bad rows": _skipped,
    "Documents that share text": _copies,
}


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _warnings(results: Mapping[str, Result]) -> list[tuple[str, str]]:
    """What the analyses themselves warn of; the same words of several are said once."""
    out = []
    if "left_out" in results:
        out += [(f"Left out: {row['analysis']}", f"{row['reason']}.") for _, row in results["left_out"].table.iterrows()]
    sources: dict[str, list[str]] = {}
    for result in results.values():
        for warning in result.warnings if result.name != "near_duplicates" else ():  # an alert says it already
            sources.setdefault(warning, []).append(result.name.replace("_", " "))
    for warning, names in sources.items():
        out.append((_capital(listed(names)) if len(names) <= 3 else f"{len(names)} analyses", warning))
    return out
