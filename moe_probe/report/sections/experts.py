"""Cards of experts: everything that the results say about one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from moe_probe.core.pieces import standing
from moe_probe.core.stats.information import effective_number
from moe_probe.core.text import clipped, figure, is_missing, some_of
from moe_probe.core.units import UnitRef, parse_members
from moe_probe.report.cells import Cell, lift_text, number, probability, table_of, yes_no
from moe_probe.report.content import Block, Card, Cards, Passage, Rich, Section, Table
from moe_probe.report.links import expert_link, glued, joined, unit_key
from moe_probe.report.passages import shaded
from moe_probe.report.sections.claims import group_cards, passages_of
from moe_probe.report.sections.related import most_similar, nearest_experts, strongest_features
from moe_probe.report.sections.unit_names import feature_link
from moe_probe.studies.verdicts import rise_text

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

#: Cards of experts that no verdict names: those with the strongest lift for any topic.
_FURTHER = 16
#: Cards of experts that those named by verdicts are most similar to, at most.
_NEAREST = 32
#: Rows of the table of experts.
_LISTED = 200


def experts_section(trace: Trace, results: Mapping[str, Result]) -> Section | None:
    """Give a card to the experts that verdicts name, and to those with the strongest lifts.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result

    Returns
    -------
    Section or None
        None where experts were not analysed.
    """
    if "experts" not in results or "expert_topics" not in results:
        return None
    topics = results["expert_topics"].table
    named: list[tuple[int, int]] = []
    if "verdicts" in results:
        for row in results["verdicts"].table.itertuples():
            named += [(int(row.layer), expert) for expert in parse_members(row.experts)]
    strongest = topics[topics["significant"]].sort_values("log2_lift", ascending=False, kind="stable")
    order = list(dict.fromkeys([*named, *zip(strongest["layer"].astype(int), strongest["expert"].astype(int), strict=True)]))
    chosen = order[: len(set(named)) + _FURTHER]
    if "expert_similarity" in results:
        near = nearest_experts(results["expert_similarity"].table, named)
        chosen += [unit for unit in near if unit not in chosen][:_NEAREST]
    annotations = _Annotations(results, passages_of(trace, results, [UnitRef((expert,), layer) for layer, expert in named]))
    blocks: list[Block] = [_table(results["experts"].table, topics)]
    for heading, units in (
        ("Cards of experts that the verdicts name", [unit for unit in chosen if unit in named]),
        ("Cards of further experts: strong lifts, or near to those above", [unit for unit in chosen if unit not in named]),
    ):
        if units:
            blocks.append(Cards(f"{heading} ({len(units)})", tuple(annotations.card(*unit) for unit in units)))
    if groups := group_cards(trace, results) if "verdicts" in results else ():
        blocks.insert(1, Cards(f"Cards of groups that the verdicts name ({len(groups)})", groups))
    contexts = results["expert_contexts"].caption if "expert_contexts" in results else "not recorded in this trace."
    return Section(
        title="Experts one by one",
        finding=f"{_devoted(topics)} The cards of {len(chosen)} experts show what each is used "
        "for, what explains that, and the text with its highest gate weights.",
        blocks=tuple(blocks),
        how=f"Each line is from the table of the analysis that it belongs to. Contexts: {contexts}",
        limits="The highest gate weights show an expert's clearest cases; most of its tokens are less clear. The highest of many "
        "lifts is high by chance too: see q and replication.",
    )


def _devoted(topics: pd.DataFrame) -> str:
    """Say how experts share topics."""
    strong = topics[topics["significant"] & topics["replicated"] & (topics["log2_lift"] > 0)]
    counts = strong.groupby(["layer", "expert"])["topic"].nunique()
    total = len(topics[["layer", "expert"]].drop_duplicates())
    if topics["q_value"].isna().all():
        return f"None of {total:,} experts can be tested."
    return (
        f"Of {total:,} experts, {int((counts == 1).sum()):,} are used more for one topic and {int((counts > 1).sum()):,} for "
        "several, replicated on held-out documents."
    )


def _table(experts: pd.DataFrame, topics: pd.DataFrame) -> Table:
    """List one row per expert; of many, those with the highest lift for any topic."""
    known = topics[topics["log2_lift"].notna()]
    best = known.loc[known.groupby(["layer", "expert"])["log2_lift"].idxmax()]
    table = experts.merge(best, on=["layer", "expert"], how="inner", suffixes=("", "_topic"), validate="1:1")
    shown = table.nlargest(_LISTED, "log2_lift").sort_values(["layer", "expert"], kind="stable")
    cells: dict[str, Cell] = {
        "layer": "layer",
        "expert": "expert",
        "load": ("load", ".1%"),
        "highest lift for": "topic",
        "lift [95 %]": lift_text,
        "q": ("q_value", probability),
        "replicated": ("replicated", yes_no),
    }
    if "explained_by" in shown:
        cells["explained by"] = "explained_by"
    bits = {"bits_token": "bits: token", "bits_topic": "bits: topic", "bits_topic_given_token": "bits: topic, token known"}
    cells |= {name: (column, 3) for column, name in bits.items() if column in shown}
    every = len(shown) == len(experts)
    return table_of(
        shown,
        cells,
        heading="All experts" if every else f"The {len(shown)} experts with the highest lifts, of {len(experts):,}",
        note="Bits: what each factor saves per selection of the expert, on held-out documents. All are in "
        "results/experts.parquet.",
    )


class _Annotations:
    """Looks up what the analyses say about an expert.

    Parameters
    ----------
    results : mapping of str to Result
    passages : mapping of UnitRef to tuple of Passage
        Of the topics that experts are claimed for.
    """

    def __init__(self, results: Mapping[str, Result], passages: Mapping[UnitRef, tuple[Passage, ...]]) -> None:
        self.tables, self.passages = {name: r.table for name, r in results.items()}, passages

    def card(self, layer: int, expert: int) -> Card:
        """Write the card of one expert."""
        texts: dict[str, Rich] = {}
        for name, source, describe in _FACTS:
            rows = self.rows(source, layer, expert)
            texts[name] = describe(rows) if rows is not None else ""
        texts["nearest experts"] = self._nearest(layer, expert)
        texts["without it"] = self._without(layer, expert)
        title = f"Layer {layer}, expert {expert}: {_best_topic(self.rows('expert_topics', layer, expert))}"
        contexts = self.rows("expert_contexts", layer, expert)
        unit = UnitRef((expert,), layer)
        passages = (*self.passages.get(unit, ()), *(() if contexts is None else _contexts(contexts)))
        return Card(title, tuple((name, text) for name, text in texts.items() if text), passages, unit_key(unit))

    def rows(self, name: str, layer: int, expert: int) -> pd.DataFrame | None:
        """Return the rows of a table that are about the expert; None where the analysis was not made."""
        table = self.tables.get(name)
        return None if table is None else table[(table["layer"] == layer) & (table["expert"] == expert)]

    def _nearest(self, layer: int, expert: int) -> Rich:
        table = self.tables.get("expert_similarity")
        if table is None:
            return ""
        nearest: list[Rich] = []
        for kind, other, top in most_similar(table, layer, expert):
            link = expert_link(layer, other, f"expert {other}")
            nearest.append(glued(f"by {kind} ", link, f" ({number(top)})"))
        return joined(nearest)

    def _without(self, layer: int, expert: int) -> str:
        table = self.tables.get("ablation")
        if table is None:
            return ""
        return rises(table[(table["layer"] == layer) & (table["sae"] == "") & (table["members"] == str(expert))], 3)


def rises(ablations: pd.DataFrame, digits: int) -> str:
    """Say how the loss changes without a unit: on the topics that it is claimed for, and where most.

    Parameters
    ----------
    ablations : pandas.DataFrame
        Rows of ``ablation`` that are about the unit; none: "".
    digits : int
        After the point, of nats.

    Returns
    -------
    str
    """
    if ablations.empty:
        return ""
    top = ablations.sort_values("delta_nats", na_position="first").iloc[-1]
    own = ablations[ablations["held_to"]].to_dict("records")
    claims = some_of(
        (f"{r['topic']} {rise_text(r, digits)}{', confirmed' if r['confirmed'] else ''}" for r in own), joint="; "
    )
    most = f"most on {top['topic']} ({figure(top['delta_nats'], f'+.{digits}f')})"
    return f"{claims}; {most}" if own else most


def _best_topic(topics: pd.DataFrame | None) -> str:
    strong = topics if topics is None else topics[topics["significant"] & (topics["log2_lift"] > 0)]
    if strong is None or strong.empty:
        return "no topic"
    top = strong.sort_values("log2_lift").iloc[-1]
    return f"most used for {top['topic']} ({2 ** top['log2_lift']:.1f}×)"


def _load(experts: pd.DataFrame) -> str:
    row = experts.iloc[0]
    text = f"{row['load']:.1%} of its layer's selections"
    gate = row.get("mean_gate_weight")
    return text if is_missing(gate) else f"{text}, mean gate weight {number(float(gate))}"


def _strongest(rows: pd.DataFrame, least: float, most: int) -> pd.DataFrame:
    return rows[rows["significant"] & (rows["log2_lift"] > least)].sort_values("log2_lift", ascending=False).head(most)


def _topics(topics: pd.DataFrame) -> str:
    shares = topics.set_index("topic")["share"].to_numpy(dtype=float)
    lifts = ", ".join(
        f"{r.topic} {2**r.log2_lift:.2f}×{'' if r.replicated else ' (not replicated)'}"
        for r in _strongest(topics, 0, 4).itertuples()
    )
    effective = effective_number(shares) if shares.sum() > 0 else float("nan")
    return (
        f"{lifts or 'none above average'}; serves {figure(effective, '.1f', 'an unknown number')} of {len(topics)} "
        "topics, by effective number"
    )


def _classes(classes: pd.DataFrame) -> str:
    return ", ".join(f"{r.token_class} {2**r.log2_lift:.1f}×" for r in _strongest(classes, 0.25, 3).itertuples())


def _tokens(tokens: pd.DataFrame) -> str:
    if tokens.empty:
        return "none above its share"
    return ", ".join(f"“{standing(_visible(r.token))}” {r.lift:.1f}×" for r in tokens.sort_values("rank").itertuples())


def _positions(positions: pd.DataFrame) -> str:
    lifts = ", ".join(f"{r.positions} {2**r.log2_lift:.1f}×" for r in _strongest(positions, 0.25, 3).itertuples())
    return f"in the document: {lifts or 'none stands out'}"


def _explained(experts: pd.DataFrame) -> str:
    row = experts.iloc[0]
    if is_missing(row.get("explained_by")):
        return ""
    factors = ("token", "previous token", "position", "topic")
    columns = {name: f"bits_{name.replace(' ', '_')}" for name in factors}
    bits = ", ".join(f"{name} {number(float(row[column]))}" for name, column in columns.items() if column in row)
    return f"by {row['explained_by']}; bits per selection that each saves: {bits}"


def _predicted(predicted: pd.DataFrame) -> str:
    if predicted.empty:
        return ""
    best = predicted.sort_values("bits").groupby("inputs", sort=False).tail(1).sort_values("bits", ascending=False)
    bits = ", ".join(
        f"{r.inputs}{f' ({int(r.width):,})' if r.width else ''} {r.bits:.2f}" for r in best.itertuples() if r.bits > 0.005
    )
    return f"bits per selection on held-out documents: {bits or 'none'}"


def _features(matches: pd.DataFrame) -> Rich:
    strong = strongest_features(matches)
    return joined(
        [
            glued(
                feature_link(f"{r.sae}:{r.feature}"),
                f" ({clipped(r.label, 50)})" if r.label else "",
                f", AUROC {figure(r.heldout_score, '.2f', 'unknown')}, fires on ",
                f"{figure(r.recall, '.0%', 'an unknown share')} of the expert's tokens",
            )
            for r in strong.itertuples()
        ],
        "; ",
    )


def _contexts(contexts: pd.DataFrame) -> tuple[Passage, ...]:
    return tuple(
        Passage(f"{r.topic}, among the highest gate weights ({r.weight:.2f})", shaded(r.tokens, r.weights, largest=1.0))
        for r in contexts.itertuples()
    )


def _visible(token: str) -> str:
    """Write a token as people can see it: a line break has a sign."""
    return str(token).replace("\n", "⏎").strip(" ") or "space"


def card_of_expert(trace: Trace, results: Mapping[str, Result], layer: int, expert: int) -> Card:
    """Write the card of one expert.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result
        With a table ``experts`` that has a row of it.
    layer, expert : int

    Returns
    -------
    Card
    """
    names = {*(source for _, source, _ in _FACTS), "expert_similarity", "ablation", "expert_contexts"}
    known = {name: results[name] for name in names if name in results}
    about = {name: results[name] for name in ("verdicts", "expert_topics") if name in results}
    return _Annotations(known, passages_of(trace, about, [UnitRef((expert,), layer)])).card(layer, expert)


#: Lines of a card: name, result that it is from, and what writes it from the expert's rows.
_FACTS: tuple[tuple[str, str, Callable[[pd.DataFrame], Rich]], ...] = (
    ("load", "experts", _load),
    ("topics", "expert_topics", _topics),
    ("kinds of tokens", "expert_token_classes", _classes),
    ("tokens", "expert_tokens", _tokens),
    ("positions", "expert_positions", _positions),
    ("explained", "experts", _explained),
    ("predicted", "experts_predicted", _predicted),
    ("features", "matches", _features),
)
