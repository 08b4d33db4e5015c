"""Values of the table of models as text, the same in a terminal, on the page and in the figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from moe_probe.core.schema import Evidence
from moe_probe.core.text import printable
from moe_probe.studies.models_table.row import ModelRow, TopicRow
from moe_probe.studies.verdicts import CLEAR, LIKELY, NEAR, NOTHING, WEAK

#: What an empty cell says where the record of routing allows no test.
NOT_TESTABLE = "not testable"

Table = tuple[list[str], list[list[str]]]


def one_line(text: str) -> str:
    """Make foreign text one line that is safe to show."""
    return " ".join(printable(text).split()) or "–"


def titles(rows: Sequence[ModelRow]) -> list[str]:
    """Name rows: by the model, and by the label too where a model has several rows."""
    models, named = Counter(r.model for r in rows), Counter((r.model, r.corpus.label) for r in rows)
    out = []
    for row in rows:
        more = [row.corpus.label] if models[row.model] > 1 else []
        more += [row.corpus.documents_hash[:8]] if named[row.model, row.corpus.label] > 1 else []
        out.append(one_line(row.model) + (f" ({', '.join(map(one_line, more))})" if more else ""))
    return out


def number(value: float | None, spec: str = ".3f") -> str:
    """Format a number, or say that it could not be tested.

    Parameters
    ----------
    value : float or None
    spec : str
        As `format` takes it.

    Returns
    -------
    str
    """
    return NOT_TESTABLE if value is None else format(value, spec)


def several(values: Sequence[int]) -> str:
    """Format one number, or the range of several."""
    return str(values[0]) if len(values) == 1 else f"{min(values)} to {max(values)}"


def corpus_name(row: ModelRow) -> str:
    """Name the corpus of a row: its note, or the name of its file."""
    return one_line(row.corpus.note or row.corpus.name)


def unit_cell(topic: TopicRow) -> str:
    """Name the expert or the group of experts of a topic."""
    if topic.layer is None:
        return "–"
    experts = ", ".join(map(str, topic.experts))
    return f"expert{'' if len(topic.experts) == 1 else 's'} {experts} of layer {topic.layer}"


def lift_cell(topic: TopicRow) -> str:
    """Format a lift with its 95 % interval, where it has one."""
    if topic.lift is None:
        return "–"
    if topic.lift_low is None or topic.lift_high is None:
        return f"{topic.lift:.2f} (no interval)"
    return f"{topic.lift:.2f} [{topic.lift_low:.2f}, {topic.lift_high:.2f}]"


def model_table(rows: Sequence[ModelRow]) -> Table:
    """Lay out what was measured: architecture, level of evidence, corpus."""
    head = ["model", "MoE layers", "experts per layer", "top-k", "level of evidence", "corpus", "label", "units", "topics"]
    return head, [
        [
            title,
            str(row.layers),
            several(row.experts),
            several(row.top_k),
            row.evidence.value,
            corpus_name(row),
            one_line(row.corpus.label),
            f"{row.corpus.units:,}",
            str(len(row.topics)),
        ]
        for title, row in zip(titles(rows), rows, strict=True)
    ]


def information_table(rows: Sequence[ModelRow]) -> Table:
    """Lay out bits of topic per selection, beside their null and the most that they could be."""
    head = ["model", "mean", "largest (layer)", "null", "mean / null", "share of possible", "p", "layers with p ≤ alpha"]
    body = []
    for title, row in zip(titles(rows), rows, strict=True):
        i = row.information
        largest = NOT_TESTABLE if i.largest is None else f"{i.largest:.4f} ({i.largest_layer})"
        counted = NOT_TESTABLE if i.layers_significant is None else f"{i.layers_significant} of {row.layers}"
        bits = [number(i.mean, ".4f"), largest, number(i.null, ".4f"), number(i.over_null, ".1f")]
        body.append([title, *bits, number(i.share_mean, ".2%"), number(i.p, ".2g"), counted])
    return head, body


def decoding_table(rows: Sequence[ModelRow]) -> Table:
    """Lay out how well the topic of held-out groups is decoded from the usage of one layer."""
    head = ["model", "best layer", "median layer", "shuffled: best layer", "shuffled: median layer", "commonest topic"]
    body = []
    for title, row in zip(titles(rows), rows, strict=True):
        d = row.decoding
        best = NOT_TESTABLE if d.best is None else f"{d.best:.1%} (layer {d.best_layer})"
        rest = [number(v, ".1%") for v in (d.median, d.shuffled_best, d.shuffled_median, d.majority)]
        body.append([title, best, *rest])
    return head, body


def topics_table(rows: Sequence[ModelRow]) -> Table:
    """Lay out how many of the topics that could be tested have an expert, by grade."""
    head = ["model", "tested topics", "with an expert", CLEAR, LIKELY, NEAR, "group only", WEAK, NOTHING]
    head += ["replicated", "words ruled out", "detectable lift"]
    return head, [[title, *_topics(row)] for title, row in zip(titles(rows), rows, strict=True)]


def _topics(row: ModelRow) -> list[str]:
    tested, named = row.tested, (*row.with_expert, *row.with_group)
    first = f"{len(tested)} of {len(row.topics)}"
    if not tested:
        return [first, *[NOT_TESTABLE] * 10]

    of_experts, of_none = Counter(t.grade for t in row.with_expert), Counter(t.grade for t in tested if t.verdict == "none")
    words = f"{sum(topic.words == 'ruled out' for topic in named)} of {len(named)}" if named else "–"
    return [
        first,
        f"{len(row.with_expert)} ({len(row.with_expert) / len(tested):.0%})",
        *(str(of_experts[grade]) for grade in (CLEAR, LIKELY, NEAR)),
        str(len(row.with_group)),
        *(str(of_none[grade]) for grade in (WEAK, NOTHING)),
        f"{sum(topic.replicated is True for topic in tested)} of {len(tested)}",
        words if row.evidence is Evidence.WORDS else NOT_TESTABLE,
        number(row.detectable_lift, ".2f"),
    ]


def strongest_table(rows: Sequence[ModelRow], most: int = 3) -> Table:
    """Lay out the strongest experts of every model.

    Parameters
    ----------
    rows : sequence of ModelRow
    most : int
        Experts of one model.

    Returns
    -------
    Table
        Head and rows.
    """
    head = ["model", "topic", "layer", "experts", "lift [95 %]", "on held-out documents", "verdict", "replicated", "words"]
    body = []
    for title, row in zip(titles(rows), rows, strict=True):
        for topic in row.strongest(most):
            verdict = f"{topic.verdict} ({topic.grade})" if topic.verdict != "none" else topic.grade
            held_out = "–" if topic.lift_held_out is None else f"{topic.lift_held_out:.2f}"
            replicated = NOT_TESTABLE if topic.replicated is None else "yes" if topic.replicated else "no"
            unit = [str(topic.layer), ", ".join(map(str, topic.experts)), lift_cell(topic), held_out]
            tests = [verdict if topic.tested else NOT_TESTABLE, replicated, topic.words]
            body.append([title, one_line(topic.topic), *unit, *tests])
    return head, body


def source_table(rows: Sequence[ModelRow]) -> Table:
    """Lay out where the numbers come from: documents, hashes, settings, versions."""
    head = [
        "model",
        "documents",
        "tokens",
        "corpus hash",
        "documents and labels",
        "strata",
        "permutations",
        "seed",
        "versions",
    ]
    return head, [
        [
            title,
            f"{row.corpus.documents:,}",
            f"{row.corpus.tokens:,}",
            row.corpus.hash[:12] or "not known",
            row.corpus.documents_hash[:12],
            one_line(row.corpus.strata or "none"),
            f"{row.permutations:,}",
            str(row.seed),
            one_line(", ".join(f"{name} {version}" for name, version in sorted(row.versions.items()))),
        ]
        for title, row in zip(titles(rows), rows, strict=True)
    ]
