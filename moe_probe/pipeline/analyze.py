"""The analyses of a trace, by name: a later one is one entry more in the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.errors import MoeProbeError
from moe_probe.results import Result

if TYPE_CHECKING:
    from moe_probe.trace import Trace


@dataclass(frozen=True)
class Settings:
    """What the analyses need from a run's settings."""

    by: str = "topic"
    strata: str | None = None
    permutations: int = 1000
    alpha: float = 0.05
    seed: int = 0
    #: The model that the trace was collected from, for what is read off its weights.
    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


Compute = Callable[["Trace", Settings, Mapping[str, Result]], "Result | tuple[Result, ...]"]


@dataclass(frozen=True)
class Analysis:
    """One analysis: what it is called, what of the trace it needs, and what computes it.

    ``compute(trace, settings, done)`` gets the results of the analyses before it by name. An analysis
    that is not `essential` is left out where the corpus does not allow it, and the report says why.
    """

    name: str
    needs: str
    compute: Compute
    essential: bool = False


def _explained(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> tuple[Result, ...]:
    from moe_probe.explain import explain_routing

    found = explain_routing(trace, label=settings.by, seed=settings.seed)
    return found.layers, found.experts


def _layers(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.usage import layer_usage

    return layer_usage(trace, label=settings.by, permutations=settings.permutations, strata=settings.strata,
                       seed=settings.seed, explained=done.get("explained"))


def _experts(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.usage import expert_usage

    return expert_usage(trace, explained=done.get("explained_experts"))


def _coactivation(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.usage import coactivation_table

    return coactivation_table(trace)


def _expert_topics(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.alignment import expert_topics

    return expert_topics(trace, label=settings.by, permutations=settings.permutations, strata=settings.strata,
                         alpha=settings.alpha, seed=settings.seed)


def _gate_mass(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.alignment import expert_topics

    return expert_topics(trace, label=settings.by, permutations=settings.permutations, strata=settings.strata,
                         alpha=settings.alpha, seed=settings.seed, measure="gate_mass")


def _expert_labels(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.alignment import expert_labels, other_labels

    usage = trace.usage()
    return expert_labels(usage, other_labels(usage, label=settings.by), permutations=settings.permutations,
                         seed=settings.seed, alpha=settings.alpha)


def _beyond(given: str) -> Compute:
    def compute(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
        from moe_probe.explain import topic_beyond_vocabulary

        return topic_beyond_vocabulary(trace, label=settings.by, given=given, permutations=settings.permutations,
                                       alpha=settings.alpha, seed=settings.seed)

    return compute


def _vocabulary_baseline(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.explain import vocabulary_baseline

    return vocabulary_baseline(trace, label=settings.by, seed=settings.seed)


def _token_classes(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.explain import expert_token_classes

    return expert_token_classes(trace, label=settings.by, alpha=settings.alpha, seed=settings.seed)


def _weights(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.clusters import weight_similarity
    from moe_probe.models import load_model

    if settings.model is None:
        raise MoeProbeError("experts cannot be compared by their weights", "no model was named",
                            "moe-probe analyze RUN --model MODEL")
    loaded = load_model(settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code,
                        progress=False)
    made_by = trace.manifest.model.fingerprint
    if made_by and made_by != loaded.info.fingerprint:
        raise MoeProbeError(f"{settings.model} is not the model of this trace", "its routers and experts have other weights",
                            "name the model that the trace was collected from")
    return weight_similarity(loaded)


def _similarity(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> tuple[Result, ...]:
    from moe_probe.clusters import expert_similarity

    return tuple(expert_similarity(trace, label=settings.by, coactivation=done.get("coactivation"),
                                   weights=done.get("weight_similarity"), seed=settings.seed))


def _clusters(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> tuple[Result, ...]:
    from moe_probe.alignment import other_labels
    from moe_probe.clusters import cluster_routing

    others = tuple(other_labels(trace.usage(), label=settings.by))
    return tuple(cluster_routing(trace, label=settings.by, others=others, seed=settings.seed))


def _combinations(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.clusters import combinations

    return combinations(trace, label=settings.by, permutations=settings.permutations, alpha=settings.alpha,
                        seed=settings.seed)


def _expert_groups(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.clusters import expert_groups
    from moe_probe.explain import expected_usage

    # without "beyond_vocabulary" the corpus is too small, or the trace too bare, to say what words predict
    expected = expected_usage(trace, label=settings.by, seed=settings.seed) if "beyond_vocabulary" in done else None
    return expert_groups(trace, label=settings.by, expected=expected, permutations=settings.permutations,
                         alpha=settings.alpha, seed=settings.seed)


def _verdicts(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.verdicts import Rules, topic_verdicts

    return topic_verdicts(done["expert_topics"], beyond=done.get("beyond_vocabulary"), groups=done.get("expert_groups"),
                          rules=Rules(alpha=settings.alpha))


#: In order; each may read the results of those above it.
ANALYSES = (
    Analysis("explained", "routing", _explained),
    Analysis("layers", "usage", _layers, essential=True),
    Analysis("experts", "usage", _experts, essential=True),
    Analysis("coactivation", "routing", _coactivation),
    Analysis("expert_topics", "usage", _expert_topics, essential=True),
    Analysis("expert_topics_gate_mass", "weights", _gate_mass),
    Analysis("expert_labels", "usage", _expert_labels),
    Analysis("beyond_vocabulary", "routing", _beyond("token")),
    Analysis("beyond_token_pairs", "routing", _beyond("token pair")),
    Analysis("vocabulary_baseline", "routing", _vocabulary_baseline),
    Analysis("expert_token_classes", "routing", _token_classes),
    Analysis("expert_groups", "usage", _expert_groups),
    Analysis("combinations", "routing", _combinations),
    Analysis("weight_similarity", "usage", _weights),
    Analysis("expert_similarity", "usage", _similarity),
    Analysis("clusters", "usage", _clusters),
    Analysis("verdicts", "usage", _verdicts, essential=True),
)
#: Results that are written with another analysis, or only where something was left out.
_FURTHER = ("explained_experts", "similarity_agreement", "cluster_summary", "cluster_agreement", "maps", "left_out")


def analyze(
    trace: Trace, directory: str | Path, *, settings: Settings | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Result]:
    """Run every analysis that the trace allows and save its table.

    Parameters
    ----------
    directory : str or Path
        Where ``<name>.parquet`` and ``<name>.json`` go, usually ``RUN/results``; those of analyses that
        are left out are removed, so that no table of an earlier corpus stays behind.
    say : callable
        Told, in a sentence, what is being done.

    Returns
    -------
    dict of str to Result
        ``left_out`` (``analysis, reason``) among them where the trace or the corpus did not allow one.

    Raises
    ------
    MoeProbeError
        When an essential analysis cannot be done with this corpus (one topic only, say); results written
        before stay.
    """
    settings = settings or Settings()
    done: dict[str, Result] = {}
    reasons: dict[str, str] = {}
    for analysis in ANALYSES:
        started = time.monotonic()
        reason = _missing(analysis, trace)
        if reason is None:
            try:
                results = analysis.compute(trace, settings, done)
            except MoeProbeError as error:
                if analysis.essential:
                    raise
                reason = str(error)
        if reason is not None:
            reasons[analysis.name] = reason
            say(f"{analysis.name}: left out, {reason}")
            continue
        for result in results if isinstance(results, tuple) else (results,):
            result.save(directory)
            done[result.name] = result
            say(f"{result.name}: {len(result.table):,} rows in {time.monotonic() - started:.1f} s")
            for warning in result.warnings:
                say(f"  note: {warning}")
    if reasons:
        done["left_out"] = _left_out(reasons)
        done["left_out"].save(directory)
    _remove_stale(Path(directory), {a.name for a in ANALYSES} | set(_FURTHER), set(done))
    return done


def _missing(analysis: Analysis, trace: Trace) -> str | None:
    """What of the trace an analysis needs and does not have."""
    if analysis.needs == "routing" and "routing" not in trace.manifest.kept:
        return "the trace holds counts per document only"
    if analysis.needs == "weights" and not trace.manifest.has_weights:
        return "the trace holds expert ids without gate weights"
    return None


def _left_out(reasons: Mapping[str, str]) -> Result:
    import pandas as pd

    table = pd.DataFrame({"analysis": list(reasons), "reason": list(reasons.values())})
    return Result("left_out", table, caption="Analyses that this trace or this corpus does not allow, and why.")


def _remove_stale(directory: Path, known: set[str], written: set[str]) -> None:
    for name in known - written:
        for suffix in (".parquet", ".json"):
            (directory / f"{name}{suffix}").unlink(missing_ok=True)
