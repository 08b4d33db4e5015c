"""Cards of single experts and features, for notebooks and terminals: what a run's results say about one unit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.html import card_html, escaped, facts_html, folded_html, shaded_html
from moe_probe.core.results import Results
from moe_probe.core.text import one_line, printable, some_of
from moe_probe.recording.rundir import RunDirectory
from moe_probe.report.links import plain

if TYPE_CHECKING:
    from moe_probe.report.content import Card, Passage


@dataclass(frozen=True)
class UnitCard:
    """What is known of one expert or feature; shown by notebooks, printed as Markdown.

    Attributes
    ----------
    title : str
    facts : tuple of (str, str)
        Names and sentences.
    passages : tuple of Passage
        Excerpts: ``name``, and ``pieces`` of text with a strength from 0 to 4.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    passages: tuple[Passage, ...] = ()

    def markdown(self) -> str:
        """Write the card as Markdown, everything escaped; the strongest parts of passages are bold."""
        from moe_probe.report.build import markdown_text

        def safe(text: str) -> str:
            return markdown_text(printable(text))

        lines = [f"### {safe(self.title)}", "", *(f"- **{safe(name)}**: {safe(value)}" for name, value in self.facts)]
        for passage in self.passages:
            # ** would not be read as bold within a word, nor beside a space or a sign
            shown = (f"<b>{safe(text)}</b>" if strength >= 2 else safe(text) for text, strength in passage.pieces)
            lines += ["", f"{safe(plain(passage.name))}:", "", f"> {''.join(shown)}"]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        """Write the card as plain text, its strongest parts in brackets."""
        lines = [self.title, *(f"  {name}: {value}" for name, value in self.facts)]
        for passage in self.passages:
            text = "".join(f"[{t}]" if s >= 2 else t for t, s in passage.pieces)
            lines.append(f"  ({plain(passage.name)}) {text.strip()}")
        return "\n".join(map(one_line, lines))

    def _repr_html_(self) -> str:
        excerpts = "".join(
            f'<div style="margin-top:4px"><i>{escaped(plain(p.name))}</i>{shaded_html(p.pieces)}</div>'
            for p in self.passages
        )
        return card_html(
            self.title, facts_html(self.facts), folded_html(f"{len(self.passages)} excerpts", excerpts) if excerpts else ""
        )


def expert_card(run: RunDirectory | str | Path, layer: int, expert: int) -> UnitCard:
    """Collect what a run's results say about an expert.

    Parameters
    ----------
    run : RunDirectory, str or Path
    layer, expert : int

    Returns
    -------
    UnitCard

    Raises
    ------
    UsageError
        When there is no such layer or expert.
    MoeProbeError
        When the run was not analysed: run ``moe-probe analyze RUN`` first.
    """
    from moe_probe.report.sections.experts import card_of_expert

    if not isinstance(run, RunDirectory):
        run = RunDirectory.open(run)
    results = run.results
    table = results["experts"].table
    layers = sorted(int(x) for x in table["layer"].unique())
    if layer not in layers:
        raise UsageError(f"there is no MoE layer {layer}", f"the run has {some_of(layers, 12)}", "one of those")
    experts = set(table.loc[table["layer"] == layer, "expert"])
    if expert not in experts:
        raise UsageError(f"layer {layer} has no expert {expert}", f"it has {len(experts)}", f"0 to {len(experts) - 1}")
    return _made(card_of_expert(run, results, layer, expert))


def feature_card(run: RunDirectory | str | Path, sae: str, feature: int) -> UnitCard:
    """Collect what a run's results say about a feature.

    Parameters
    ----------
    run : RunDirectory, str or Path
    sae : str
        Folder of the SAE below ``RUN/sae``, as ``layer_05/width_01024``.
    feature : int

    Returns
    -------
    UnitCard
        Excerpts are those that ``moe-probe label`` kept (``--cards``); other features have none.

    Raises
    ------
    UsageError
        When there is no such SAE or feature.
    MoeProbeError
        When the features of the run were not labelled: run ``moe-probe label RUN`` first.
    """
    from moe_probe.report.sections.features import card_of_feature

    results = _results(run)
    table = results["features"].table
    names = list(dict.fromkeys(table["sae"]))
    if sae not in names:
        raise UsageError(f"there is no SAE '{sae}' in the run's features", did_you_mean(sae, names), f"one as {names[0]}")
    n = int((table["sae"] == sae).sum())
    if not 0 <= feature < n:
        raise UsageError(f"{sae} has no feature {feature}", f"it has {n:,}", f"0 to {n - 1}")
    return _made(card_of_feature(results, sae, feature))


def _results(run: RunDirectory | str | Path) -> Results:
    return Results(Path(run) / "results") if isinstance(run, str | Path) else run.results


def _made(card: Card) -> UnitCard:
    return UnitCard(card.title, tuple((name, plain(text)) for name, text in card.facts), card.passages)
