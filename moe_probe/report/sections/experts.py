"""Cards of experts: everything that is known of one, in human terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.core.pieces import decode, standing
from moe_probe.core.text import figure, some_of
from moe_probe.core.units import parse_members
from moe_probe.features.matching.topic_predictors import effective_number
from moe_probe.report.content import (
    Block,
    Card,
    Cards,
    Passage,
    Section,
    Table,
    cut,
    lift_text,
    number,
    probability,
    sae_name,
)
from moe_probe.studies.verdicts import rise_text

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

#: Cards of experts that no verdict names: those with the strongest lift for any topic.
_FURTHER = 16
#: Rows of the table of experts.
_LISTED = 200


def experts_section(results: Mapping[str, Result]) -> Section | None:
    """Give a card to the experts that verdicts rest on, and to those with the strongest lifts."""
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
    facts = _Facts(results)
    first = [facts.card(layer, expert) for layer, expert in chosen if (layer, expert) in set(named)]
    rest = [facts.card(layer, expert) for layer, expert in chosen if (layer, expert) not in set(named)]
    blocks: list[Block] = [_table(results["experts"].table, topics)]
    blocks += [
        Cards(f"{heading} ({len(cards)})", tuple(cards))
        for heading, cards in (
            ("Cards of experts that the verdicts speak of", first),
            ("Cards of further experts with strong lifts", rest),
        )
        if cards
    ]
    return Section(
        title="Experts one by one",
        finding=f"{_devoted(topics)} The cards of {len(chosen)} say what each is used "
        "for, what explains that, and the text it is surest of.",
        blocks=tuple(blocks),
        how="Each line is from the table of the analysis that it belongs to; contexts: "
        + (results["expert_contexts"].caption if "expert_contexts" in results else "not kept in this trace."),
        limits="The highest gate weights show an expert's clearest cases; most of its tokens are duller.",
    )


def _devoted(topics: pd.DataFrame) -> str:
    """How experts share topics, in a sentence."""
    strong = topics[topics["significant"] & topics["replicated"] & (topics["log2_lift"] > 0)]
    counts = strong.groupby(["layer", "expert"])["topic"].nunique()
    total = len(topics[["layer", "expert"]].drop_duplicates())
    return (
        f"Of {total:,} experts, {int((counts == 1).sum()):,} are used more for one topic and {int((counts > 1).sum()):,} for "
        "several, counting what was found again on held-out documents."
    )


def _table(experts: pd.DataFrame, topics: pd.DataFrame) -> Table:
    """A row an expert; of many, those with the highest lift for any topic."""
    known = topics[topics["log2_lift"].notna()]
    best = known.loc[known.groupby(["layer", "expert"])["log2_lift"].idxmax()]
    table = experts.merge(best, on=["layer", "expert"], how="inner", suffixes=("", "_topic"), validate="1:1")
    shown = table.nlargest(_LISTED, "log2_lift").sort_values(["layer", "expert"], kind="stable")
    bits = [c for c in ("bits_token", "bits_topic", "bits_topic_given_token") if c in shown]
    names = {"bits_token": "bits: token", "bits_topic": "bits: topic", "bits_topic_given_token": "bits: topic, token known"}
    by = "explained_by" in shown
    heads = (
        "layer",
        "expert",
        "load",
        "highest lift for",
        "lift [95 %]",
        "q",
        "replicated",
        *(("explained by",) if by else ()),
        *(names[c] for c in bits),
    )
    rows = tuple(
        (
            str(int(r["layer"])),
            str(int(r["expert"])),
            f"{r['load']:.1%}",
            str(r["topic"]),
            lift_text(r),
            probability(r["q_value"]),
            "yes" if r["replicated"] else "no",
            *((str(r["explained_by"]),) if by else ()),
            *(number(float(r[c]), 3) for c in bits),
        )
        for r in shown.to_dict("records")
    )
    of = (
        "All experts"
        if len(shown) == len(experts)
        else f"The {len(shown)} experts with the highest lifts, of {len(experts):,}"
    )
    return Table(
        heads,
        rows,
        heading=of,
        note="Bits: what each factor saves a selection of the expert, on documents not learnt from. The highest of "
        "many lifts is high by chance too: see q and replication. All are in results/experts.parquet.",
    )


class _Facts:
    """Looks up what the analyses say of an expert."""

    READS = (
        "experts",
        "expert_topics",
        "expert_token_classes",
        "experts_predicted",
        "matches",
        "expert_similarity",
        "ablation",
        "expert_contexts",
    )

    def __init__(self, results: Mapping[str, Result]) -> None:
        self.tables = {name: r.table for name, r in results.items()}

    def of(self, name: str, layer: int, expert: int) -> pd.DataFrame | None:
        """Rows of a table that are the expert's; None where the analysis was not made."""
        table = self.tables.get(name)
        if table is None:
            return None
        return table[(table["layer"] == layer) & (table["expert"] == expert)]

    def card(self, layer: int, expert: int) -> Card:
        """Everything of one expert."""
        row = self.of("experts", layer, expert)
        assert row is not None
        facts: list[tuple[str, str]] = [("load", _load(row.iloc[0]))]
        for name, text in (
            ("topics", self._topics(layer, expert)),
            ("kinds of tokens", self._classes(layer, expert)),
            ("tokens", self._tokens(layer, expert)),
            ("positions", self._positions(layer, expert)),
            ("explained", _explained(row.iloc[0])),
            ("predicted", self._predicted(layer, expert)),
            ("features", self._features(layer, expert)),
            ("nearest experts", self._near(layer, expert)),
            ("without it", self._without(layer, expert)),
        ):
            if text:
                facts.append((name, text))
        best = self._best_topic(layer, expert)
        return Card(f"Layer {layer}, expert {expert}: {best}", tuple(facts), self._contexts(layer, expert))

    def _best_topic(self, layer: int, expert: int) -> str:
        mine = self.of("expert_topics", layer, expert)
        mine = mine[mine["significant"] & (mine["log2_lift"] > 0)] if mine is not None else mine
        if mine is None or mine.empty:
            return "no topic"
        top = mine.sort_values("log2_lift").iloc[-1]
        return f"most used for {top['topic']} ({2 ** top['log2_lift']:.1f}×)"

    def _topics(self, layer: int, expert: int) -> str:
        mine = self.of("expert_topics", layer, expert)
        if mine is None:
            return ""
        shares = mine.set_index("topic")["share"].to_numpy(dtype=float)
        strong = mine[mine["significant"] & (mine["log2_lift"] > 0)].sort_values("log2_lift", ascending=False).head(4)
        said = ", ".join(
            f"{r.topic} {2**r.log2_lift:.2f}×{'' if r.replicated else ' (not found again)'}" for r in strong.itertuples()
        )
        effective = effective_number(shares) if shares.sum() > 0 else float("nan")
        return (
            f"{said or 'none above average'}; serves {figure(effective, '.1f', 'an unknown number')} of {len(mine)} "
            "topics, by effective number"
        )

    def _classes(self, layer: int, expert: int) -> str:
        mine = self.of("expert_token_classes", layer, expert)
        if mine is None:
            return ""
        strong = mine[mine["significant"] & (mine["log2_lift"] > 0.25)].sort_values("log2_lift", ascending=False).head(3)
        return ", ".join(f"{r.token_class} {2**r.log2_lift:.1f}×" for r in strong.itertuples())

    def _tokens(self, layer: int, expert: int) -> str:
        mine = self.of("expert_tokens", layer, expert)
        if mine is None:
            return ""
        if mine.empty:
            return "none beyond its share"
        return ", ".join(f"“{standing(_visible(r.token))}” {r.lift:.1f}×" for r in mine.sort_values("rank").itertuples())

    def _positions(self, layer: int, expert: int) -> str:
        mine = self.of("expert_positions", layer, expert)
        if mine is None:
            return ""
        strong = mine[mine["significant"] & (mine["log2_lift"] > 0.25)].sort_values("log2_lift", ascending=False).head(3)
        said = ", ".join(f"{r.positions} {2**r.log2_lift:.1f}×" for r in strong.itertuples())
        return f"in the document: {said or 'none stands out'}"

    def _predicted(self, layer: int, expert: int) -> str:
        mine = self.of("experts_predicted", layer, expert)
        if mine is None or mine.empty:
            return ""
        best = mine.sort_values("bits").groupby("inputs", sort=False).tail(1).sort_values("bits", ascending=False)
        said = ", ".join(
            f"{r.inputs}{f' ({int(r.width):,})' if r.width else ''} {r.bits:.2f}"
            for r in best.itertuples()
            if r.bits > 0.005
        )
        return f"bits a selection on held-out documents: {said or 'none'}"

    def _features(self, layer: int, expert: int) -> str:
        mine = self.of("matches", layer, expert)
        if mine is None:
            return ""
        strong = mine[mine["significant"]].sort_values("heldout_bits", ascending=False).drop_duplicates("sae").head(3)
        return "; ".join(
            f"{sae_name(r.sae)}: {r.feature}{f' ({cut(r.label, 50)})' if r.label else ''}, AUROC "
            f"{figure(r.heldout_score, '.2f', 'unknown')}, fires on "
            f"{figure(r.recall, '.0%', 'an unknown share')} of the expert's tokens"
            for r in strong.itertuples()
        )

    def _near(self, layer: int, expert: int) -> str:
        table = self.tables.get("expert_similarity")
        if table is None:
            return ""
        mine = table[(table["layer"] == layer) & ((table["expert_a"] == expert) | (table["expert_b"] == expert))]
        said = []
        for kind, part in mine.groupby("kind", sort=True):
            top = part.sort_values("similarity").iloc[-1]
            other = int(top["expert_b"] if top["expert_a"] == expert else top["expert_a"])
            said.append(f"by {kind} {other} ({number(float(top['similarity']))})")
        return ", ".join(said)

    def _without(self, layer: int, expert: int) -> str:
        table = self.tables.get("ablation")
        if table is None:
            return ""
        mine = table[(table["layer"] == layer) & (table["sae"] == "") & (table["members"] == str(expert))]
        if mine.empty:
            return ""
        top = mine.sort_values("delta_nats", na_position="first").iloc[-1]
        own = mine[mine["held_to"]]
        said = some_of(
            (f"{r['topic']} {rise_text(r, 3)}{', confirmed' if r['confirmed'] else ''}" for r in own.to_dict("records")),
            joint="; ",
        )
        return f"{said + '; ' if len(own) else ''}most on {top['topic']} ({figure(top['delta_nats'], '+.3f')})"

    def _contexts(self, layer: int, expert: int) -> tuple[Passage, ...]:
        mine = self.of("expert_contexts", layer, expert)
        if mine is None:
            return ()
        return tuple(Passage(f"{r.topic}, weight {r.weight:.2f}", _pieces(r.tokens, r.weights)) for r in mine.itertuples())


def _load(row: Any) -> str:
    text = f"{row['load']:.1%} of its layer's selections"
    gate = row.get("mean_gate_weight", float("nan"))
    return text if gate != gate else f"{text}, mean gate weight {number(float(gate))}"


def _explained(row: Any) -> str:
    if "explained_by" not in row or row["explained_by"] is None:
        return ""
    names = {
        "token": "bits_token",
        "previous token": "bits_previous_token",
        "position": "bits_position",
        "topic": "bits_topic",
    }
    bits = ", ".join(f"{name} {number(float(row[column]))}" for name, column in names.items() if column in row)
    return f"by {row['explained_by']}; bits a selection that each saves: {bits}"


def _visible(token: str) -> str:
    """A token as people can see it: a line break has a sign."""
    text = str(token).replace("\n", "⏎")
    return text.strip(" ") or "space"


def _pieces(tokens: Any, weights: Any) -> tuple[tuple[str, int], ...]:
    """Shade the text by the weight that the expert had in it."""
    return tuple(
        (text.replace("\n", "⏎"), 0 if weight <= 0 else min(4, 1 + int(4 * weight)))
        for text, weight in decode(list(map(str, tokens))).shaded(weights)
    )


def card_of_expert(results: Mapping[str, Result], layer: int, expert: int) -> Card:
    """The card of one expert; the run has a table ``experts`` with a row of it."""
    return _Facts({name: results[name] for name in _Facts.READS if name in results}).card(layer, expert)
