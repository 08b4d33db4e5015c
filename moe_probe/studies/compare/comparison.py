"""Everything that several runs can be asked together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.progress import Say, silent
from moe_probe.core.results import Result
from moe_probe.studies.compare.alignment import align_experts
from moe_probe.studies.compare.effects import compare_layers, compare_topics
from moe_probe.studies.compare.facts import compare_runs_table
from moe_probe.studies.compare.labels import compare_labels
from moe_probe.studies.compare.pairing import Pairing, pair_sides
from moe_probe.studies.compare.saes import sae_differences, sae_values
from moe_probe.studies.compare.sides import Side, same_shape
from moe_probe.studies.compare.summary import all_differences, headlines
from moe_probe.studies.compare.verdicts import compare_verdicts, verdict_changes

if TYPE_CHECKING:
    import pandas as pd

#: Tables that a comparison can hold, in the order in which they are read.
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


@dataclass(frozen=True)
class Comparison:
    """Tables of a comparison by name, of those in `TABLES` that could be made.

    Examples
    --------
    >>> comparison = moe_probe.compare_runs(["runs/early", "runs/demo"])
    >>> comparison.table("comparison_differences").query("beyond")
    """

    results: tuple[Result, ...]

    def __contains__(self, name: str) -> bool:
        return any(r.name == name for r in self.results)

    def result(self, name: str) -> Result:
        """A result by name.

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

    def table(self, name: str) -> pd.DataFrame:
        """The table of a result; errors as `result`."""
        return self.result(name).table

    @property
    def sides(self) -> list[str]:
        """Names of what is compared, in order."""
        return list(dict.fromkeys(self.table("comparison_runs")["side"]))

    @property
    def headlines(self) -> list[str]:
        """What stands out, in sentences."""
        return headlines({r.name: r for r in self.results})

    @property
    def notes(self) -> list[str]:
        """What weakens the comparison, in sentences, and what could not be compared."""
        out = dict.fromkeys(w for r in self.results for w in r.warnings)
        if "comparison_left_out" in self:
            out |= dict.fromkeys(self.table("comparison_left_out")["reason"])
        return list(out)

    def save(self, directory: str | Path) -> list[Path]:
        """Write every table as Parquet and JSON; tables of an earlier comparison that are not among them are removed."""
        paths = [result.save(directory) for result in self.results]
        for name in set(TABLES) - {r.name for r in self.results}:
            for ending in (".parquet", ".json"):
                (Path(directory) / f"{name}{ending}").unlink(missing_ok=True)
        return paths

    @classmethod
    def load(cls, directory: str | Path) -> Comparison:
        """Read what `save` wrote.

        Raises
        ------
        MoeProbeError
            When there is no comparison, or a table cannot be read.
        """
        found = [name for name in TABLES if (Path(directory) / f"{name}.parquet").exists()]
        if "comparison_runs" not in found:
            raise MoeProbeError(
                f"there is no comparison in {directory}",
                "it holds no comparison_runs.parquet",
                "moe-probe compare RUN RUN --out FOLDER",
            )
        return cls(tuple(Result.load(directory, name) for name in found))


def compare_sides(
    sides: Sequence[Side],
    *,
    resamples: int = 1000,
    permutations: int = 199,
    seed: int = 0,
    alpha: float = 0.05,
    say: Say = silent,
) -> Comparison:
    """Ask of several runs what can be asked of them together; the first is what the others are held against.

    Parameters
    ----------
    sides : sequence of Side
        Two or more, or one with SAEs of several widths.
    resamples, permutations, seed : int
        Of the bootstrap, and of the null of the alignment.
    alpha : float
        False discovery rate.
    say : callable
        Told, in a sentence, what is being done.

    Returns
    -------
    Comparison

    Raises
    ------
    MoeProbeError
        When nothing can be compared, in one sentence; what only part of the questions lacks is left out and named in
        ``comparison_left_out`` (``question, side_a, side_b, reason``).
    """
    names = [side.name for side in sides]
    if len(set(names)) < len(names):
        raise UsageError("two sides have the same name", ", ".join(names), "--labels with a name for each")
    found = [compare_runs_table(sides)]
    left_out: list[dict[str, str]] = []
    if len(sides) > 1:
        found.append(compare_verdicts(sides))
        for other in sides[1:]:
            parts, missing = _compare_pair(
                sides[0], other, found[1], resamples=resamples, permutations=permutations, seed=seed, alpha=alpha, say=say
            )
            found += parts
            left_out += missing
    if len({side.label for side in sides}) == 1:  # labels of one run have the same SAEs
        found += _saes(sides, left_out, alpha=alpha)
    joined = _joined(found)
    if left_out:
        import pandas as pd

        joined.append(Result("comparison_left_out", pd.DataFrame(left_out), caption="What could not be compared, and why."))
    joined.append(all_differences({r.name: r for r in joined}))
    return Comparison(tuple(sorted(joined, key=lambda r: TABLES.index(r.name))))


def _compare_pair(
    a: Side,
    b: Side,
    verdicts: Result,
    *,
    resamples: int,
    permutations: int,
    seed: int,
    alpha: float,
    say: Say,
) -> tuple[list[Result], list[dict[str, str]]]:
    if a.same_trace(b) and a.label == b.label and a.results.keys() == b.results.keys():
        raise UsageError(
            f"{a.name} and {b.name} are one run under one label", "nothing can differ", "another run, or two --by"
        )
    pairing = None if a.trace is None or b.trace is None else pair_sides(a, b)
    say(f"{a.name} against {b.name}: " + ("stored intervals" if pairing is None else f"{pairing.method} of documents"))
    out: list[Result] = []
    left_out: list[dict[str, str]] = []

    def attempt(question: str, work: Callable[[], Sequence[Result]]) -> None:
        try:
            out.extend(work())
        except MoeProbeError as error:
            left_out.append({"question": question, "side_a": a.name, "side_b": b.name, "reason": str(error)})

    if not a.same_trace(b):  # a trace's experts are themselves
        say("matching experts")
        attempt("which expert is which", lambda: align_experts(a, b, pairing=pairing, permutations=permutations, seed=seed))
        attempt("router saturation", lambda: [_saturation(a, b, pairing)])
    if a.label == b.label:
        topics = compare_topics(a, b, pairing=pairing, resamples=resamples, seed=seed, alpha=alpha)
        matched = next((r for r in out if r.name == "aligned_experts"), None)
        out += [verdict_changes(a, b, verdicts, topics, matched), topics]
    else:
        out.append(compare_labels(a, b, pairing=pairing, resamples=resamples, seed=seed, alpha=alpha))
    out.append(compare_layers(a, b, pairing=pairing, resamples=resamples, seed=seed, alpha=alpha))
    return out, left_out


def _saturation(a: Side, b: Side, pairing: Pairing | None) -> Result:
    from moe_probe.experts.published import router_saturation

    if not same_shape(a, b) or a.trace is None or b.trace is None or pairing is None or pairing.shared.no_tokens:
        why = (
            pairing.shared.no_tokens
            if pairing is not None and pairing.shared.no_tokens
            else "they have other layers, or one has no trace"
        )
        raise MoeProbeError(
            f"{a.name} and {b.name} are no checkpoints of one model on the same tokens", why, "two checkpoints on one corpus"
        )
    found = router_saturation(a.trace, b.trace)
    table = found.table.assign(side_a=a.name, side_b=b.name)
    return replace(found, name="comparison_saturation", table=table[["side_a", "side_b", *found.table.columns]])


def _saes(sides: Sequence[Side], left_out: list[dict[str, str]], *, alpha: float) -> list[Result]:
    with_saes = [side for side in sides if "sae_quality" in side.results]
    distinct = [s for i, s in enumerate(with_saes) if not any(s.same_trace(t) for t in with_saes[:i])]
    if not distinct:
        if len(sides) < 2:
            raise MoeProbeError(
                f"{sides[0].name} alone cannot be compared", "it has no SAEs of several widths", "a second run, or two --by"
            )
        return []
    values = sae_values(distinct)
    try:
        return [values, sae_differences(values, alpha=alpha)]
    except MoeProbeError as error:
        if len(sides) < 2:
            raise
        left_out.append({"question": "SAEs", "side_a": sides[0].name, "side_b": "", "reason": str(error)})
        return [values]


def _joined(found: Sequence[Result]) -> list[Result]:
    """Tables of several pairs under one name as one."""
    import pandas as pd

    out: dict[str, Result] = {}
    for result in found:
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
