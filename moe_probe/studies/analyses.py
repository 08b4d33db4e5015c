"""The analyses of a trace: one table of their names, in the order in which they run.

A trace comes in; result tables about experts, and the verdicts that rest on them, go out. To add an analysis, write the
function that returns its `Result`, and add an entry to `ANALYSES`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.evidence import missing_evidence
from moe_probe.core.lock import locked, run_of_results
from moe_probe.core.progress import Say, silent, track
from moe_probe.core.results import Result
from moe_probe.core.schema import Evidence
from moe_probe.core.settings import StatisticsSettings, setting
from moe_probe.experts.clusters import (
    cluster_routing,
    combinations,
    expert_groups,
    expert_similarity,
    weight_similarity,
)
from moe_probe.experts.contexts import expert_contexts
from moe_probe.experts.duplicates import near_duplicates
from moe_probe.experts.explain import (
    CONTEXTS,
    ExpectedUsage,
    expected_usage,
    expert_positions,
    expert_token_classes,
    expert_tokens,
    explain_routing,
    topic_beyond_vocabulary,
    vocabulary_baseline,
)
from moe_probe.experts.published import published_metrics
from moe_probe.experts.topic_groups import other_labels
from moe_probe.experts.topics import expert_labels, expert_topics
from moe_probe.experts.usage import coactivation_table, expert_usage, layer_usage
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.trace import Trace
from moe_probe.studies.verdicts import Rules, topic_verdicts, update_verdicts
from moe_probe.studies.verdicts.evidence import complete_verdicts


class AnalysisSettings(StatisticsSettings):
    """Settings of the analyses of a trace: the statistics, the seed and the model."""

    seed: int = setting(0, "seed of every random choice")
    model: ModelSettings | None = setting(None, "the trace's model, to compare experts by their weights", flag="-")


@dataclass
class Context:
    """Input of an analysis: the trace, the settings and the results of the analyses before it.

    Attributes
    ----------
    trace : Trace
    settings : AnalysisSettings
    done : dict of str to Result
        Results so far, by name.
    """

    trace: Trace
    settings: AnalysisSettings
    done: dict[str, Result] = field(default_factory=dict)
    _expected: dict[str, ExpectedUsage] = field(default_factory=dict)

    def options(self, *names: str) -> dict[str, Any]:
        """Give the label, the seed and further settings as keyword arguments of an analysis."""
        return {"label": self.settings.by, "seed": self.settings.seed} | {n: getattr(self.settings, n) for n in names}

    def tests(self) -> dict[str, Any]:
        """Give the keyword arguments of an analysis that permutes labels."""
        return self.options("permutations", "strata", "alpha")

    def expected(self, given: str) -> ExpectedUsage:
        """Predict usage from a context; computed once, since two analyses need it."""
        if given not in self._expected:
            # pairs of tokens are many; the two further contexts may rest on part of a large corpus
            max_tokens = 10_000_000 if given == "token" else 500_000
            self._expected[given] = expected_usage(self.trace, given=given, max_tokens=max_tokens, **self.options())
        return self._expected[given]


Compute = Callable[[Context], "Result | tuple[Result, ...]"]


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Attributes
    ----------
    name : str
        Name of its (first) result.
    needs : Evidence
        Lowest level of evidence on which it is possible.
    compute : callable
        Takes a `Context` and returns one result or several.
    essential : bool
        An analysis that is not essential is left out where the corpus does not allow it, and the report says why.
    weights : bool
        Whether it needs gate weights.
    """

    name: str
    needs: Evidence
    compute: Compute
    essential: bool = False
    weights: bool = False

    def missing(self, trace: Trace) -> str | None:
        """Say what the analysis needs and the trace lacks, if anything."""
        if lacking := missing_evidence(trace.manifest.evidence, self.needs):
            return lacking
        if self.weights and not trace.manifest.has_weights:
            return "the record has expert ids without gate weights"
        return None


def _explained(c: Context) -> tuple[Result, ...]:
    return tuple(explain_routing(c.trace, **c.options()))


def _layers(c: Context) -> Result:
    return layer_usage(c.trace, explained=c.done.get("explained"), **c.options("permutations", "strata"))


def _experts(c: Context) -> Result:
    return expert_usage(c.trace, explained=c.done.get("explained_experts"))


def _gate_mass(c: Context) -> Result:
    return expert_topics(c.trace, measure="gate_mass", **c.tests())


def _expert_labels(c: Context) -> Result:
    options = c.tests()
    return expert_labels(c.trace, other_labels(c.trace.usage(), label=options.pop("label")), **options)


def _beyond(given: str) -> Compute:
    return lambda c: topic_beyond_vocabulary(c.trace, given=given, usage=c.expected(given), **c.tests())


def _weights(c: Context) -> Result:
    from moe_probe.core.schema import need_same_weights, stored_dtype
    from moe_probe.models import load_model

    model = c.settings.model
    if model is None:
        raise MoeProbeError(
            "experts cannot be compared by their weights", "no model was named", "moe-probe analyze RUN --model MODEL"
        )
    recorded = c.trace.manifest.model
    dtype = model.dtype if model.dtype != "auto" else stored_dtype(recorded)
    loaded = load_model(model.name, progress=False, **model.load_options() | {"dtype": dtype})
    need_same_weights(loaded.like(recorded).info, recorded)
    return weight_similarity(loaded)


def _similarity(c: Context) -> tuple[Result, ...]:
    coactivation, weights = c.done.get("coactivation"), c.done.get("weight_similarity")
    return tuple(expert_similarity(c.trace, coactivation=coactivation, weights=weights, **c.options()))


def _clusters(c: Context) -> tuple[Result, ...]:
    others = tuple(other_labels(c.trace.usage(), label=c.settings.by))
    return tuple(cluster_routing(c.trace, others=others, **c.options("strata")))


def _expert_groups(c: Context) -> Result:
    # a test that is missing was left out: the corpus is too small, or the trace lacks what predictions from words need
    expected = [c.expected(given) for given, name in CONTEXTS.items() if name in c.done]
    return expert_groups(c.trace, expected=expected, **c.tests())


def _contexts(c: Context) -> Result:
    if not c.trace.manifest.has_text:
        raise MoeProbeError(
            "no contexts of experts", "the trace was collected without its text", "collect without --no-text"
        )
    return expert_contexts(c.trace)


def _verdicts(c: Context) -> tuple[Result, ...]:
    verdicts = topic_verdicts(
        c.done["expert_topics"],
        groups=c.done.get("expert_groups"),
        rules=Rules(alpha=c.settings.alpha),
        beyond=[c.done[name] for name in CONTEXTS.values() if name in c.done],
    )
    # the first stays as it is, whatever features and ablations add to the second
    return replace(verdicts, name="usage_verdicts"), complete_verdicts(verdicts)


_COUNTS, _DOCUMENTS, _TOKENS, _WORDS = Evidence.COUNTS, Evidence.DOCUMENTS, Evidence.TOKENS, Evidence.WORDS
#: In order; each may read the results of those above it. Beside each name the level of evidence that it needs.
ANALYSES = (
    Analysis("explained", _WORDS, _explained),
    Analysis("layers", _COUNTS, _layers, essential=True),
    Analysis("experts", _COUNTS, _experts, essential=True),
    Analysis("coactivation", _TOKENS, lambda c: coactivation_table(c.trace)),
    Analysis("expert_topics", _COUNTS, lambda c: expert_topics(c.trace, **c.tests()), essential=True),
    Analysis("expert_topics_gate_mass", _COUNTS, _gate_mass, weights=True),
    Analysis("expert_labels", _COUNTS, _expert_labels),
    *(Analysis(name, _WORDS, _beyond(given)) for given, name in CONTEXTS.items()),
    Analysis("vocabulary_baseline", _WORDS, lambda c: vocabulary_baseline(c.trace, **c.options())),
    Analysis("expert_token_classes", _WORDS, lambda c: expert_token_classes(c.trace, **c.options("alpha"))),
    Analysis("expert_tokens", _WORDS, lambda c: expert_tokens(c.trace, **c.options())),
    Analysis("expert_positions", _TOKENS, lambda c: expert_positions(c.trace, **c.options("alpha"))),
    Analysis("expert_groups", _DOCUMENTS, _expert_groups),
    Analysis("combinations", _TOKENS, lambda c: combinations(c.trace, **c.tests())),
    Analysis("weight_similarity", _COUNTS, _weights),
    Analysis("expert_similarity", _DOCUMENTS, _similarity),
    Analysis("clusters", _DOCUMENTS, _clusters),
    Analysis("expert_contexts", _WORDS, _contexts, weights=True),
    # without token ids it leaves out what is about vocabulary
    Analysis("published", _TOKENS, lambda c: published_metrics(c.trace, layers=c.done.get("layers"), **c.options())),
    Analysis("verdicts", _COUNTS, _verdicts, essential=True),
    # last, so that its warning ends what the terminal shows
    Analysis("near_duplicates", _WORDS, lambda c: near_duplicates(c.trace, label=c.settings.by)),
)
#: Results that are written with another analysis, or only where something was left out.
_FURTHER = (
    *("explained_experts", "similarity_agreement", "cluster_summary", "cluster_agreement", "maps"),
    *("left_out", "usage_verdicts"),
)


@locked(lambda trace, directory, **_: run_of_results(directory))  # noqa: ARG005
def analyze(
    trace: Trace, directory: str | Path, *, settings: AnalysisSettings | None = None, say: Say = silent
) -> dict[str, Result]:
    """Run every analysis that the trace allows, and save their tables together.

    Parameters
    ----------
    trace : Trace
    directory : str or Path
        Folder of ``<name>.parquet`` and ``<name>.json``, usually ``RUN/results``. Tables of analyses that
        are left out are removed from it, so that no table of an earlier corpus stays behind.
    settings : AnalysisSettings, optional
    say : callable
        Called with a sentence on every step.

    Returns
    -------
    dict of str to Result
        With ``left_out`` (``analysis, reason``) if the trace or the corpus did not allow an analysis.

    Raises
    ------
    MoeProbeError
        When an essential analysis is impossible with this corpus (of one topic only, say), or the disk refuses. The folder
        is as it was before.
    """
    context = Context(trace, settings or AnalysisSettings())
    done = context.done
    reasons: dict[str, str] = {}
    for analysis in track(ANALYSES, "analyze", unit="analyses", name=lambda a: a.name):
        started = time.monotonic()
        results, reason = _computed(analysis, context)
        if reason:
            reasons[analysis.name] = reason
            say(f"{analysis.name}: left out, {reason}")
        for result in results:
            done[result.name] = result
            say(f"{result.name}: {len(result.table):,} rows in {time.monotonic() - started:.1f} s")
            for warning in result.warnings:
                say(f"  note: {warning}")
    if reasons:
        done["left_out"] = _left_out(reasons)
    stale = ({a.name for a in ANALYSES} | set(_FURTHER)) - set(done)
    statistics = context.settings.model_dump(exclude={"model"})
    # what features and causes said of this run before stays in its verdicts
    verdicts = update_verdicts(Path(directory), done.values(), settings=statistics, remove=stale)
    return done if verdicts is None else done | {"verdicts": verdicts}


def _computed(analysis: Analysis, context: Context) -> tuple[tuple[Result, ...], str]:
    """Compute an analysis; or say why it is left out."""
    reason = analysis.missing(context.trace)
    if reason is not None:
        return (), reason
    try:
        results = analysis.compute(context)
    except MoeProbeError as error:
        if analysis.essential:
            raise
        return (), str(error)
    return results if isinstance(results, tuple) else (results,), ""


def _left_out(reasons: Mapping[str, str]) -> Result:
    import pandas as pd

    table = pd.DataFrame({"analysis": list(reasons), "reason": list(reasons.values())})
    return Result("left_out", table, caption="Analyses that this trace or this corpus does not allow, and the reasons.")
