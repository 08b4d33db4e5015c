"""All tables of a comparison of several runs, made, kept and read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.generation import save_together
from moe_probe.core.html import card_html, escaped, folded_html, table_html
from moe_probe.core.progress import Say, silent
from moe_probe.core.publication import Published
from moe_probe.core.results import Result
from moe_probe.studies.compare.alignment import align_experts
from moe_probe.studies.compare.compared_run import ComparedRun, same_shape
from moe_probe.studies.compare.facts import run_facts
from moe_probe.studies.compare.labels import compare_labels
from moe_probe.studies.compare.layers import compare_layers
from moe_probe.studies.compare.pairing import Pairing, pair_runs
from moe_probe.studies.compare.saes import sae_differences, sae_values
from moe_probe.studies.compare.settings import ComparisonSettings
from moe_probe.studies.compare.summary import all_differences, headlines
from moe_probe.studies.compare.topics import compare_topics
from moe_probe.studies.compare.verdicts import compare_verdicts, verdict_changes

if TYPE_CHECKING:
    import pandas as pd

#: Tables that a comparison can have, in the order in which they are read.
TABLES = (
    "comparison_runs",
    "comparison_verdicts",
    "comparison_changes",
    "comparison_topics",
    "comparison_layers",
    "comparison_experts",
    "aligned_layers",
    "aligned_experts",
    "comparison_saturation",
    "comparison_saes",
    "comparison_sae_differences",
    "comparison_left_out",
    "comparison_differences",
)
#: What else is written about a comparison, after its tables.
PAGES = ("compare.ipynb", "compare.html")


@dataclass(frozen=True)
class Comparison:
    """Tables of a comparison by name, of those in `TABLES` that could be made.

    Attributes
    ----------
    results : tuple of Result
        In the order of `TABLES`.

    Examples
    --------
    >>> comparison = moe_probe.compare_runs(["runs/early", "runs/demo"])
    >>> comparison                                              # what stands out
    >>> comparison.table.query("beyond")                        # every difference between the runs
    >>> comparison["comparison_topics"].table                   # any table by name
    """

    results: tuple[Result, ...]

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a table of this name."""
        return any(r.name == name for r in self.results)

    def __getitem__(self, name: str) -> Result:
        """Look up a result by name.

        Raises
        ------
        MoeProbeError
            When this comparison has none of that name.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise MoeProbeError(
            f"this comparison has no table '{name}'", f"it has {', '.join(r.name for r in self.results)}", "another"
        )

    @property
    def table(self) -> pd.DataFrame:
        """Every difference between the runs, the table of ``comparison_differences``."""
        return self["comparison_differences"].table

    def __repr__(self) -> str:
        """Say what stands out, in sentences."""
        return "\n".join(self.headlines)

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escaped(line)}</p>" for line in self.headlines)
        rows = [(r.name, f"{len(r.table):,}", r.caption.split(". ")[0]) for r in self.results]
        tables = folded_html("tables", table_html(("name", "rows", "what it shows"), rows))
        return card_html(f"Comparison of {', '.join(self.sides)}", lines, tables)

    @property
    def sides(self) -> list[str]:
        """Names of the runs compared, in order."""
        return list(dict.fromkeys(self["comparison_runs"].table["side"]))

    @property
    def headlines(self) -> list[str]:
        """What stands out, in sentences."""
        return headlines({r.name: r for r in self.results})

    @property
    def notes(self) -> list[str]:
        """What weakens the comparison, in sentences, and what could not be compared."""
        out = dict.fromkeys(w for r in self.results for w in r.warnings)
        if "comparison_left_out" in self:
            out |= dict.fromkeys(self["comparison_left_out"].table["reason"])
        return list(out)

    def save(self, directory: str | Path) -> list[Path]:
        """Write every table as Parquet and JSON, all at one moment.

        Tables of an earlier comparison that are not among them vanish with it, and so do its notebook and its page.
        """
        others = set(TABLES) - {r.name for r in self.results}
        save_together(directory, self.results, remove=[*sorted(others), *PAGES])
        return [Path(directory) / f"{r.name}.parquet" for r in self.results]

    @classmethod
    def load(cls, directory: str | Path) -> Comparison:
        """Read what `save` wrote.

        Raises
        ------
        MoeProbeError
            When there is no comparison, or a table cannot be read.
        """
        published = Published.of(Path(directory))
        names = [name for name in TABLES if published.exists(f"{name}.parquet")]
        if "comparison_runs" not in names:
            raise MoeProbeError(
                f"there is no comparison in {directory}",
                "it has no comparison_runs.parquet",
                "moe-probe compare RUN RUN --out FOLDER",
            )
        return cls(tuple(Result.load(directory, name) for name in names))


def compare_opened_runs(
    runs: Sequence[ComparedRun], *, settings: ComparisonSettings | None = None, say: Say = silent
) -> Comparison:
    """Compare several runs; the others are compared with the first.

    Parameters
    ----------
    runs : sequence of ComparedRun
        Two or more, or one with SAEs of several widths.
    settings : ComparisonSettings, optional
    say : callable
        Gets a sentence on each step.

    Returns
    -------
    Comparison
        Where part of the questions cannot be answered, ``comparison_left_out`` says which and why (``question, side_a,
        side_b, reason``).

    Raises
    ------
    MoeProbeError
        When nothing can be compared.
    """
    settings = settings or ComparisonSettings()
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UsageError("two sides have the same name", ", ".join(names), "--names with a name for each")
    results = [run_facts(runs)]
    left_out: list[dict[str, str]] = []
    if len(runs) > 1:
        verdicts = compare_verdicts(runs)
        results.append(verdicts)
        for other in runs[1:]:
            pair = _Pair(runs[0], other, settings, say)
            results += pair.compare(verdicts)
            left_out += pair.left_out
    if len({run.label for run in runs}) == 1:  # labels of one run have the same SAEs
        results += _compare_saes(runs, left_out, alpha=settings.alpha)
    joined = _joined(results)
    if left_out:
        import pandas as pd

        joined.append(Result("comparison_left_out", pd.DataFrame(left_out), caption="What could not be compared, and why."))
    joined.append(all_differences({r.name: r for r in joined}))
    return Comparison(tuple(sorted(joined, key=lambda r: TABLES.index(r.name))))


class _Pair:
    """Two runs under comparison; `left_out` collects the questions that cannot be answered."""

    def __init__(self, a: ComparedRun, b: ComparedRun, settings: ComparisonSettings, say: Say) -> None:
        if a.same_trace(b) and a.label == b.label and a.results.keys() == b.results.keys():
            raise UsageError(
                f"{a.name} and {b.name} are one run under one label", "nothing can differ", "another run, or two --by"
            )
        self.a, self.b, self.settings, self.say = a, b, settings, say
        self.pairing = None if a.trace is None or b.trace is None else pair_runs(a, b)
        self.left_out: list[dict[str, str]] = []

    def compare(self, verdicts: Result) -> list[Result]:
        a, b, pairing, settings = self.a, self.b, self.pairing, self.settings
        method = "stored intervals" if pairing is None else f"{pairing.method} of documents"
        self.say(f"{a.name} against {b.name}: {method}")
        results: list[Result] = []
        if not a.same_trace(b):  # a trace's experts are themselves
            self.say("matching experts")
            results += self._attempt(
                "which expert is which", lambda: align_experts(a, b, pairing=pairing, settings=settings)
            )
            results += self._attempt("router saturation", lambda: [_saturation(a, b, pairing)])
        if a.label == b.label:
            topics = compare_topics(a, b, pairing=pairing, settings=settings)
            aligned = next((r for r in results if r.name == "aligned_experts"), None)
            results += [verdict_changes(a, b, verdicts, topics, aligned), topics]
        else:
            results.append(compare_labels(a, b, pairing=pairing, settings=settings))
        return [*results, compare_layers(a, b, pairing=pairing, settings=settings)]

    def _attempt(self, question: str, work: Callable[[], Sequence[Result]]) -> Sequence[Result]:
        try:
            return work()
        except MoeProbeError as error:
            self.left_out.append({"question": question, "side_a": self.a.name, "side_b": self.b.name, "reason": str(error)})
            return ()


def _saturation(a: ComparedRun, b: ComparedRun, pairing: Pairing | None) -> Result:
    from moe_probe.experts.published import router_saturation

    if not same_shape(a, b) or a.trace is None or b.trace is None or pairing is None or pairing.shared.no_tokens:
        why = "" if pairing is None else pairing.shared.no_tokens
        raise MoeProbeError(
            f"{a.name} and {b.name} are no checkpoints of one model on the same tokens",
            why or "they have other layers, or one has no trace",
            "two checkpoints on one corpus",
        )
    saturation = router_saturation(a.trace, b.trace)
    table = saturation.table.assign(side_a=a.name, side_b=b.name)
    return replace(saturation, name="comparison_saturation", table=table[["side_a", "side_b", *saturation.table.columns]])


def _compare_saes(runs: Sequence[ComparedRun], left_out: list[dict[str, str]], *, alpha: float) -> list[Result]:
    with_saes = [run for run in runs if "sae_quality" in run.results]
    distinct = [run for i, run in enumerate(with_saes) if not any(run.same_trace(other) for other in with_saes[:i])]
    if not distinct:
        if len(runs) < 2:
            raise MoeProbeError(
                f"{runs[0].name} alone cannot be compared", "it has no SAEs of several widths", "a second run, or two --by"
            )
        return []
    values = sae_values(distinct)
    try:
        return [values, sae_differences(values, alpha=alpha)]
    except MoeProbeError as error:
        if len(runs) < 2:
            raise
        left_out.append({"question": "SAEs", "side_a": runs[0].name, "side_b": "", "reason": str(error)})
        return [values]


def _joined(results: Sequence[Result]) -> list[Result]:
    """Tables of several pairs under one name as one."""
    import pandas as pd

    out: dict[str, Result] = {}
    for result in results:
        if result.name not in out:
            out[result.name] = result
            continue
        before = out[result.name]
        out[result.name] = replace(
            before,
            table=pd.concat([before.table, result.table], ignore_index=True),
            warnings=tuple(dict.fromkeys([*before.warnings, *result.warnings])),
        )
    return list(out.values())
