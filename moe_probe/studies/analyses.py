"""The analyses of a trace, by name: a later one is one entry more in the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say, silent, track
from moe_probe.core.results import Result

if TYPE_CHECKING:
    from moe_probe.experts.explain import ExpectedUsage
    from moe_probe.recording.trace import Trace


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
    dtype: str = "auto"
    trust_remote_code: bool = False


@dataclass
class Context:
    """What an analysis may read: the trace, the settings, and results of the analyses before it by name."""

    trace: Trace
    settings: Settings
    done: dict[str, Result] = field(default_factory=dict)

    _expected: dict[str, ExpectedUsage] = field(default_factory=dict)

    def expected(self, given: str) -> ExpectedUsage:
        """What words predict of usage: two analyses need it, and it is the same for both."""
        from moe_probe.experts.explain import expected_usage

        if given not in self._expected:
            # pairs of tokens are many; the two further opinions may rest on part of a large corpus
            self._expected[given] = expected_usage(
                self.trace,
                label=self.settings.by,
                given=given,
                seed=self.settings.seed,
                max_tokens=10_000_000 if given == "token" else 500_000,
            )
        return self._expected[given]


Compute = Callable[[Context], "Result | tuple[Result, ...]"]


@dataclass(frozen=True)
class Analysis:
    """One analysis: what it is called, what of the trace it needs, and what computes it.

    An analysis that is not `essential` is left out where the corpus does not allow it, and the report says why.
    """

    name: str
    needs: str
    compute: Compute
    essential: bool = False


def _explained(c: Context) -> tuple[Result, ...]:
    from moe_probe.experts.explain import explain_routing

    found = explain_routing(c.trace, label=c.settings.by, seed=c.settings.seed)
    return found.layers, found.experts


def _layers(c: Context) -> Result:
    from moe_probe.experts.usage import layer_usage

    return layer_usage(
        c.trace,
        label=c.settings.by,
        permutations=c.settings.permutations,
        strata=c.settings.strata,
        seed=c.settings.seed,
        explained=c.done.get("explained"),
    )


def _experts(c: Context) -> Result:
    from moe_probe.experts.usage import expert_usage

    return expert_usage(c.trace, explained=c.done.get("explained_experts"))


def _coactivation(c: Context) -> Result:
    from moe_probe.experts.usage import coactivation_table

    return coactivation_table(c.trace)


def _expert_topics(c: Context) -> Result:
    from moe_probe.experts.topics import expert_topics

    return expert_topics(
        c.trace,
        label=c.settings.by,
        permutations=c.settings.permutations,
        strata=c.settings.strata,
        alpha=c.settings.alpha,
        seed=c.settings.seed,
    )


def _gate_mass(c: Context) -> Result:
    from moe_probe.experts.topics import expert_topics

    return expert_topics(
        c.trace,
        label=c.settings.by,
        permutations=c.settings.permutations,
        strata=c.settings.strata,
        alpha=c.settings.alpha,
        seed=c.settings.seed,
        measure="gate_mass",
    )


def _expert_labels(c: Context) -> Result:
    from moe_probe.experts.topic_groups import other_labels
    from moe_probe.experts.topics import expert_labels

    usage = c.trace.usage()
    return expert_labels(
        usage,
        other_labels(usage, label=c.settings.by),
        permutations=c.settings.permutations,
        seed=c.settings.seed,
        alpha=c.settings.alpha,
        strata=c.settings.strata,
    )


def _beyond(given: str) -> Compute:
    def compute(c: Context) -> Result:
        from moe_probe.experts.explain import topic_beyond_vocabulary

        return topic_beyond_vocabulary(
            c.trace,
            label=c.settings.by,
            given=given,
            permutations=c.settings.permutations,
            alpha=c.settings.alpha,
            strata=c.settings.strata,
            seed=c.settings.seed,
            usage=c.expected(given),
        )

    return compute


def _vocabulary_baseline(c: Context) -> Result:
    from moe_probe.experts.explain import vocabulary_baseline

    return vocabulary_baseline(c.trace, label=c.settings.by, seed=c.settings.seed)


def _token_classes(c: Context) -> Result:
    from moe_probe.experts.explain import expert_token_classes

    return expert_token_classes(c.trace, label=c.settings.by, alpha=c.settings.alpha, seed=c.settings.seed)


def _weights(c: Context) -> Result:
    if c.settings.model is None:
        raise MoeProbeError(
            "experts cannot be compared by their weights", "no model was named", "moe-probe analyze RUN --model MODEL"
        )
    from moe_probe.core.schema import need_same_weights, stored_dtype
    from moe_probe.experts.clusters import weight_similarity
    from moe_probe.models import load_model

    made_by = c.trace.manifest.model
    dtype = c.settings.dtype if c.settings.dtype != "auto" else stored_dtype(made_by)
    loaded = load_model(
        c.settings.model,
        revision=c.settings.revision,
        dtype=dtype,
        trust_remote_code=c.settings.trust_remote_code,
        progress=False,
    )
    need_same_weights(loaded.info, made_by)
    return weight_similarity(loaded)


def _similarity(c: Context) -> tuple[Result, ...]:
    from moe_probe.experts.clusters import expert_similarity

    return tuple(
        expert_similarity(
            c.trace,
            label=c.settings.by,
            coactivation=c.done.get("coactivation"),
            weights=c.done.get("weight_similarity"),
            seed=c.settings.seed,
        )
    )


def _clusters(c: Context) -> tuple[Result, ...]:
    from moe_probe.experts.clusters import cluster_routing
    from moe_probe.experts.topic_groups import other_labels

    others = tuple(other_labels(c.trace.usage(), label=c.settings.by))
    return tuple(
        cluster_routing(c.trace, label=c.settings.by, others=others, seed=c.settings.seed, strata=c.settings.strata)
    )


def _combinations(c: Context) -> Result:
    from moe_probe.experts.clusters import combinations

    return combinations(
        c.trace,
        label=c.settings.by,
        permutations=c.settings.permutations,
        alpha=c.settings.alpha,
        strata=c.settings.strata,
        seed=c.settings.seed,
    )


def _expert_tokens(c: Context) -> Result:
    from moe_probe.experts.explain import expert_tokens

    return expert_tokens(c.trace, label=c.settings.by, seed=c.settings.seed)


def _expert_positions(c: Context) -> Result:
    from moe_probe.experts.explain import expert_positions

    return expert_positions(c.trace, label=c.settings.by, alpha=c.settings.alpha, seed=c.settings.seed)


def _expert_groups(c: Context) -> Result:
    from moe_probe.experts.clusters import expert_groups
    from moe_probe.experts.explain import CONTEXTS

    # a test that is missing was left out: the corpus is too small, or the trace too bare, to say what words predict
    expected = [c.expected(given) for given, name in CONTEXTS.items() if name in c.done]
    return expert_groups(
        c.trace,
        label=c.settings.by,
        expected=expected,
        strata=c.settings.strata,
        permutations=c.settings.permutations,
        alpha=c.settings.alpha,
        seed=c.settings.seed,
    )


def _contexts(c: Context) -> Result:
    from moe_probe.experts.contexts import expert_contexts

    if not c.trace.manifest.has_text:
        raise MoeProbeError(
            "no contexts of experts", "the trace was collected without its text", "collect without --no-text"
        )
    return expert_contexts(c.trace)


def _published(c: Context) -> Result:
    from moe_probe.experts.published import published_metrics

    return published_metrics(c.trace, label=c.settings.by, layers=c.done.get("layers"), seed=c.settings.seed)


def _verdicts(c: Context) -> tuple[Result, ...]:
    from dataclasses import replace

    from moe_probe.experts.explain import CONTEXTS
    from moe_probe.studies.verdicts import Rules, topic_verdicts
    from moe_probe.studies.verdicts.evidence import complete_verdicts

    found = topic_verdicts(
        c.done["expert_topics"],
        groups=c.done.get("expert_groups"),
        rules=Rules(alpha=c.settings.alpha),
        beyond=[c.done[name] for name in CONTEXTS.values() if name in c.done],
    )
    # the first stays as it is, whatever features and causes will say
    return replace(found, name="usage_verdicts"), complete_verdicts(found)


def _near_duplicates(c: Context) -> Result:
    from moe_probe.experts.duplicates import near_duplicates

    return near_duplicates(c.trace, label=c.settings.by)


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
    Analysis("beyond_previous_token", "routing", _beyond("previous token")),
    Analysis("beyond_token_pairs", "routing", _beyond("token pair")),
    Analysis("vocabulary_baseline", "routing", _vocabulary_baseline),
    Analysis("expert_token_classes", "routing", _token_classes),
    Analysis("expert_tokens", "routing", _expert_tokens),
    Analysis("expert_positions", "routing", _expert_positions),
    Analysis("expert_groups", "usage", _expert_groups),
    Analysis("combinations", "routing", _combinations),
    Analysis("weight_similarity", "usage", _weights),
    Analysis("expert_similarity", "usage", _similarity),
    Analysis("clusters", "usage", _clusters),
    Analysis("expert_contexts", "weights", _contexts),
    Analysis("published", "routing", _published),
    Analysis("verdicts", "usage", _verdicts, essential=True),
    Analysis("near_duplicates", "routing", _near_duplicates),  # last, so that its warning ends what the terminal shows
)
#: Results that are written with another analysis, or only where something was left out.
_FURTHER = (
    "explained_experts",
    "similarity_agreement",
    "cluster_summary",
    "cluster_agreement",
    "maps",
    "left_out",
    "usage_verdicts",
)


def analyze(
    trace: Trace,
    directory: str | Path,
    *,
    settings: Settings | None = None,
    say: Say = silent,
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
    context = Context(trace, settings or Settings())
    done = context.done
    reasons: dict[str, str] = {}
    for analysis in track(ANALYSES, "analyze", unit="analyses", name=lambda a: a.name):
        started = time.monotonic()
        reason = _missing(analysis, trace)
        if reason is None:
            try:
                results = analysis.compute(context)
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
