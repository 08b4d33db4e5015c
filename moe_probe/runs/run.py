"""A run directory in one object: its trace, its results, its SAEs, its verdicts, cards and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.html import card_html, facts_html, folded_html, table_html
from moe_probe.core.results import Result
from moe_probe.core.text import bracket, figure, quoted, table_lines
from moe_probe.recording.rundir import RunDirectory
from moe_probe.report.unit_card import UnitCard, expert_card, feature_card

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.report.build import ReportOptions
    from moe_probe.report.plots.of_run import RunPlots
    from moe_probe.sae import Sae


class Saes(Mapping[str, "Sae"]):
    """SAEs of a run by folder (``layer_05/width_01024``), loaded (with torch) when they are asked for."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._loaded: dict[str, Sae] = {}

    def __getitem__(self, name: str) -> Sae:
        """Load an SAE by the name of its folder."""
        if name not in set(self):
            raise UsageError(
                f"there is no SAE '{name}' in {self._run / 'sae'}",
                did_you_mean(name, list(self)) if len(self) else "it holds none",
                f"moe-probe sae train {quoted(self._run)}",
            )
        if name not in self._loaded:
            from moe_probe.sae import load_sae

            self._loaded[name] = load_sae(self._run / "sae" / name).eval()
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        """Whether the run has an SAE of that name."""
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the SAEs."""
        return iter(
            sorted(
                p.parent.relative_to(self._run / "sae").as_posix()
                for p in (self._run / "sae").glob("layer_*/width_*/cfg.json")
            )
        )

    def __len__(self) -> int:
        """Count the SAEs."""
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        """Name what there is, in one line."""
        return f"Saes({', '.join(self) or 'none'})"


class Verdicts(Result):
    """The result ``verdicts``: shown as a row for each topic; ``run.verdicts["chemistry"]`` is the row of one.

    `table` has all columns, ``sentence`` among them: the answer in words.
    """

    def __getitem__(self, topic: str) -> pd.Series:
        """Return the row of a topic; UsageError where there is none."""
        rows = self.table[self.table["topic"] == topic]
        if rows.empty:
            known = self.table["topic"].tolist()
            raise UsageError(f"there is no topic '{topic}'", did_you_mean(topic, known), "run.verdicts.table")
        return rows.iloc[0]

    @property
    def rows(self) -> pd.DataFrame:
        """The columns that answer: topic, verdict, grade, layer, experts, lift and its interval."""
        table = self.table
        lift = [figure(2**value, ".2f", "–") for value in table["log2_lift"]]
        bounds = zip(2 ** table["ci_low"], 2 ** table["ci_high"], strict=True)
        known = [name for name in ("topic", "verdict", "grade", "layer", "experts") if name in table]
        return table[known].assign(lift=lift, interval=[bracket(low, high, ".2f") for low, high in bounds])

    def __repr__(self) -> str:
        """Answer for every topic, in a row."""
        return "\n".join([*table_lines(self.rows), 'Why: run.verdicts["TOPIC"]["sentence"]'])

    def _repr_html_(self) -> str:
        shown = self.rows.assign(answer=self.table.get("sentence", ""))
        rows = [[str(value) for value in row] for row in shown.astype(object).itertuples(index=False)]
        table = f'<div style="overflow-x:auto">{table_html(list(shown.columns), rows)}</div>'
        return card_html(
            f"{len(rows)} verdicts", table, folded_html("all columns, how they were reached", super()._repr_html_())
        )


class Run(RunDirectory):
    """A run directory. It is a `Trace` with more to it, so that every analysis takes it as one.

    Examples
    --------
    >>> run = moe_probe.open("runs/demo")
    >>> run.answers                                 # short answers, by question
    >>> run.verdicts                                # is there a chemistry expert?
    >>> run.results.expert_topics.table             # any result by name
    >>> run.card(5, 13), run.card("layer_05/width_01024", 334)   # an expert, a feature
    >>> run.verdicts["chemistry"]                   # the row of one topic
    >>> run.plot.topics().savefig("topics.pdf")     # any figure of the report
    >>> run.report()                                # report.html, written anew
    """

    def saes(self) -> Saes:
        """SAEs by folder, loaded when asked for: ``run.saes()["layer_05/width_01024"]``. Needs torch."""
        return Saes(self.path)

    @property
    def verdicts(self) -> Verdicts:
        """Is there an expert for each topic? One row a topic; ``run.verdicts["chemistry"]`` is that row.

        Raises
        ------
        MoeProbeError
            When the run was not analysed.
        """
        return Verdicts(**vars(self.results["verdicts"]))

    @property
    def answers(self) -> dict[str, str]:
        """Short answers by question, as the report and the command line give them.

        Raises
        ------
        MoeProbeError
            When a result is damaged.
        """
        from moe_probe.report.sections.answers import answers

        return {answer.question: answer.answer for answer in answers(self.results)}

    @property
    def plot(self) -> RunPlots:
        """Figures of the report by name, as matplotlib Figures: ``run.plot.topics().savefig("topics.pdf")``."""
        from moe_probe.report.plots.of_run import RunPlots

        return RunPlots(self.results)

    def card(self, where: int | str, number: int) -> UnitCard:
        """Gather what is known of one expert or feature.

        Parameters
        ----------
        where : int or str
            Layer of an expert, or folder of a feature's SAE.
        number : int
            Of the expert or feature.

        Returns
        -------
        UnitCard

        Raises
        ------
        MoeProbeError
            When there is no such unit, or nothing was found out about it yet.
        """
        return feature_card(self, where, number) if isinstance(where, str) else expert_card(self, where, number)

    def report(self, options: ReportOptions | None = None) -> Path:
        """Write ``report.html``, ``report.md`` and figures; return the path of the page.

        Parameters
        ----------
        options : ReportOptions, optional
            Sections, title, folder and formats, where they are not the usual ones.

        Returns
        -------
        Path

        Raises
        ------
        MoeProbeError
            When there are no results, or the disk refuses.
        """
        from moe_probe.report import write_report

        files = write_report(self.path, options)
        return next(path for path in files if path.name in ("report.html", "report.md"))

    def _held(self) -> list[tuple[str, str]]:
        report = self.path / "report.html"
        return [
            ("results", f"{len(self.results)}: {', '.join(self.results)}" if len(self.results) else "none yet"),
            ("SAEs", ", ".join(self.saes()) or "none"),
            ("report", str(report) if report.exists() else "none yet: run.report()"),
        ]

    def __repr__(self) -> str:
        """Name what there is, in one line."""
        report = "report.html" if (self.path / "report.html").exists() else "no report"
        return (
            f"Run({self.path}: {super().__repr__()}, {len(self.results)} results, {len(self.saes())} SAEs, {report}; "
            "see .verdicts, .plot, .results, .saes(), .card(), .report(), .trace)"
        )

    def _repr_html_(self) -> str:
        from moe_probe.recording.trace.facts import trace_facts

        return card_html(
            f"Run {self.path}: {self.manifest.model.id}",
            facts_html([*trace_facts(self.manifest, self.documents), *self._held()]),
        )
