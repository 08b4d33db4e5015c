"""Sections on sparse autoencoders: how faithful they are, and what their features say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.core.pieces import decode
from moe_probe.core.text import bracket, figure, some_of
from moe_probe.report.content import Block, Card, Cards, Passage, Picture, Section, Table, number, probability, sae_name
from moe_probe.report.plots import routing as plots
from moe_probe.studies.verdicts import rise_text

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_FEATURES = "What do the features say?"
_SHOWN = 6
#: Features of topics that are listed.
_TOPIC_ROWS = 15


def sae_section(results: Mapping[str, Result]) -> Section:
    """Show the measures of every SAE on held-out documents."""
    result = results["sae_quality"]
    table = result.table
    finding = (
        f"Reconstructions leave {number(float(table['fvu'].min()))} to {number(float(table['fvu'].max()))} of the "
        f"variance unexplained with {number(float(table['l0'].mean()), 0)} active latents a token"
    )
    known = table[table["ce_recovered"].notna()]
    finding += (
        f"; put into the model they keep {float(known['ce_recovered'].min()):.0%} to "
        f"{float(known['ce_recovered'].max()):.0%} of what the activation does for the loss."
        if len(known)
        else "."
    )
    heads = (
        "SAE",
        "hook",
        "L0",
        "FVU",
        "loss recovered [95 %]",
        "against the mean",
        "dead",
        "dense",
        "redundancy",
        "seconds",
    )
    rows = tuple(
        (
            _name(r),
            str(r["hook"]).replace("_", " "),
            number(float(r["l0"]), 1),
            number(float(r["fvu"]), 3),
            _recovered(r),
            number(float(r["ce_recovered_mean"])),
            figure(r["dead"], ".1%", "–"),
            figure(r["dense"], ".1%", "–"),
            number(float(r["redundancy"])),
            number(float(r["train_seconds"]), 1),
        )
        for _, r in table.iterrows()
    )
    picture = Picture(
        "sae_pareto",
        plots.sae_pareto(table),
        finding,
        "Left: variance unexplained against active latents a token, lower and further left is better. Right: the "
        "share of the activation's effect on the loss that the reconstruction keeps, by width. Held-out documents.",
    )
    return Section(
        title="How faithful are the sparse autoencoders?",
        finding=finding,
        blocks=(picture, Table(heads, rows, heading="SAEs")),
        how=result.caption,
        limits="A low FVU says that sums of features give the activation back, not that single features mean "
        "something. Where zeros in the activation's place cost little, the share recovered is of a small thing.",
    )


def _name(row: Any) -> str:
    return sae_name(str(row["sae"]))


def _recovered(row: Any) -> str:
    if row["ce_recovered"] != row["ce_recovered"]:
        return "–"
    return f"{float(row['ce_recovered']):.1%} {bracket(row['ce_recovered_low'], row['ce_recovered_high'], '.1%')}"


def features_section(results: Mapping[str, Result]) -> Section:
    """Show how many features have a label that holds, what labels speak of, topics, and cards."""
    result = results["features"]
    table = result.table
    living = table[table["density"] > 0]
    if living.empty:
        return Section(title=_FEATURES, finding="No feature fires on this corpus.", how=result.caption)
    share = living["good"].mean()
    finding = (
        f"{int(living['good'].sum()):,} of {len(living):,} living features ({share:.0%}) have a label from which one can "
        f"tell, on text it was not made from, where the feature fires; the other {1 - share:.0%} have none that good."
    )
    params = result.params
    blocks: list[Block] = [_by_sae(table, params), _by_rule(living), _topics(living, params)]
    if "feature_cards" in results:
        blocks += _cards(table, results, params)
    return Section(
        title=_FEATURES,
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="Rules are narrow: a feature about an idea that many words express gets a poor score though a "
        "person might see the idea. A good label tells where a feature fires, not what it does. "
        "Words are put together from tokens, so a label may name a word of which the feature sees a piece.",
    )


def _by_sae(table: pd.DataFrame, params: Mapping[str, Any]) -> Table:
    rows = []
    for name, part in table.groupby("sae", sort=False):
        living = part[part["density"] > 0]
        scored, tested, measured = (living[living[column].notna()] for column in ("label_score", "topic_q", "auroc_topic"))
        rows.append(
            (
                _name({"sae": name}),
                number(len(living)),
                f"{len(living) / len(part):.0%}",
                figure(living["good"].mean(), ".0%", "–"),
                number(float(scored["label_score"].median())),
                figure((tested["topic"] != "").mean(), ".0%", "–"),
                figure((measured["auroc_topic"] >= 0.9).mean(), ".1%", "–"),
            )
        )
    return Table(
        (
            "SAE",
            "living features",
            "of all",
            "good label",
            "median label score",
            f"fire more for a {params['by']}",
            f"tell a {params['by']}'s documents (AUROC ≥ 0.9)",
        ),
        tuple(rows),
        note=f"Good: balanced accuracy of at least {params['good_score']:g} on held-out tokens, and "
        f"{params['good_hard_score']:g} against tokens of the feature of nearest direction.",
    )


def _by_rule(living: pd.DataFrame) -> Table:
    labelled = living[living["label_rule"] != ""]
    rows = []
    for rule, part in sorted(labelled.groupby("label_rule"), key=lambda item: -len(item[1])):
        example = part.sort_values("label_score", ascending=False).iloc[0]
        rows.append(
            (
                str(rule),
                number(len(part)),
                f"{float(part['good'].mean()):.0%}",
                number(float(part["label_score"].median())),
                shortened(str(example["label"])),
            )
        )
    return Table(
        ("labels speak of", "features", "good", "median score", "best example"),
        tuple(rows),
        heading="What labels speak of",
        note="The rule that tells best, on text it was not made from, where a feature fires.",
    )


def shortened(label: str) -> str:
    """A label's first parts, and how many more there are."""
    parts = label.split(", ")
    return label if len(parts) <= _SHOWN else f"{', '.join(parts[:_SHOWN])} and {len(parts) - _SHOWN} more"


def _topics(living: pd.DataFrame, params: Mapping[str, Any]) -> Table:
    by = params["by"]
    best = living[living["topic"] != ""].sort_values("auroc_topic", ascending=False, kind="stable").groupby("topic").head(1)
    rows = tuple(
        (
            str(r["topic"]),
            _name(r),
            str(int(r["feature"])),
            number(float(r["auroc_topic"])),
            f"{number(float(2 ** r['topic_log2_lift']))}× [{number(float(2 ** r['topic_ci_low']))}, "
            f"{number(float(2 ** r['topic_ci_high']))}]",
            probability(float(r["topic_q"])),
            f"{float(r['density']):.2%}",
            shortened(str(r["label"])),
        )
        for _, r in best.head(_TOPIC_ROWS).iterrows()
    )
    return Table(
        (by, "SAE", "feature", "AUROC, held-out documents", "lift [95 %]", "q", "density", "label"),
        rows,
        heading=f"The feature that tells each {by} best",
        note=f"The feature that tells a {by}'s held-out documents best, of all SAEs. AUROC was looked at to choose it: "
        "take it as an upper end.",
    )


def _cards(table: pd.DataFrame, results: Mapping[str, Result], params: Mapping[str, Any]) -> list[Block]:
    facts, cards = table.set_index(["sae", "feature"]), results["feature_cards"].table
    out: list[Block] = []
    for chosen, heading in (
        ("topic", f"Cards of features that tell a {params['by']}"),
        ("best", "Cards of features with good labels"),
        ("drawn", "Cards of features drawn at random"),
    ):
        made = []
        for (sae, feature), part in cards[cards["chosen"] == chosen].groupby(["sae", "feature"], sort=False):
            key = str(sae), int(feature)
            made.append(_card(facts.loc[key], *key, part, params, _more(results, *key)))
        if made:
            out.append(Cards(f"{heading} ({len(made)})", tuple(made)))
    return out


def _more(results: Mapping[str, Result], sae: str, feature: int) -> list[tuple[str, str]]:
    return [("experts", _through(results, sae, feature)), ("without it", _without(results, sae, feature))]


def _through(results: Mapping[str, Result], sae: str, feature: int) -> str:
    """Experts that the feature's tokens go through; empty where features were not matched with experts."""
    if "feature_experts" not in results:
        return ""
    table = results["feature_experts"].table
    mine = table[(table["sae"] == sae) & (table["feature"] == feature)].sort_values("rank")
    if mine.empty:
        return "it fires on too few held-out tokens to say"
    said = ", ".join(f"{int(r.expert)} ({r.share:.0%} of their selections, {r.lift:.1f}×)" for r in mine.itertuples())
    first = mine.iloc[0]
    return (
        f"its tokens go through {number(float(first['effective_experts']), 1)} experts by effective number (all tokens: "
        f"{number(float(first['effective_experts_all']), 1)}), most through {said}"
    )


def _without(results: Mapping[str, Result], sae: str, feature: int) -> str:
    """What the loss does with the feature taken away; empty where that was not measured."""
    if "ablation" not in results:
        return ""
    table = results["ablation"].table
    mine = table[(table["sae"] == sae) & (table["members"].astype(str) == str(feature))]
    if mine.empty:
        return ""
    own = mine[mine["held_to"]]
    said = some_of(
        (f"{r['topic']} {rise_text(r)}{', confirmed' if r['confirmed'] else ''}" for r in own.to_dict("records")), joint="; "
    )
    top = mine.sort_values("delta_nats", na_position="first").iloc[-1]
    return f"{said + '; ' if len(own) else ''}most on {top['topic']} ({figure(top['delta_nats'], '+.4f')})"


def _card(
    row: pd.Series, sae: str, feature: int, excerpts: pd.DataFrame, params: Mapping[str, Any], more: list[tuple[str, str]]
) -> Card:
    label = shortened(str(row["label"])) or "no label"
    by, finer = params["by"], params.get("finer")
    topic = (
        f"{row['topic']} ({number(float(2 ** row['topic_log2_lift']))}×, q {probability(float(row['topic_q']))}; AUROC of "
        f"held-out documents {number(float(row['auroc_topic']))})"
        if row["topic"]
        else "none passes"
    )
    facts = [
        ("label", str(row["label"])),
        (
            "label score",
            f"{number(float(row['label_score']))} (nearest feature: {number(float(row['label_hard_score']))}; "
            f"precision {number(float(row['label_precision']))}, recall {number(float(row['label_recall']))})",
        ),
        (by, topic),
        ("fires on", f"{float(row['density']):.2%} of tokens, most on: {row['top_tokens'] or '–'}"),
        ("nearest feature", f"{int(row['nearest'])} (cosine {number(float(row['nearest_cosine']))})"),
    ]
    if finer and row[finer]:
        facts.insert(3, (str(finer), str(row[finer])))
    facts += [(name, text) for name, text in more if text]
    largest = float(row["max_activation"]) or 1.0
    passages = tuple(Passage(str(e["part"]), pieces(e["tokens"], e["activations"], largest)) for _, e in excerpts.iterrows())
    return Card(f"{_name({'sae': sae})}, feature {feature}: {label}", tuple(facts), passages)


def pieces(tokens: Any, activations: Any, largest: float) -> tuple[tuple[str, int], ...]:
    """The text of tokens, joined as far as it is shaded alike."""
    joined: list[tuple[str, int]] = []
    for part, value in decode(list(map(str, tokens))).shaded(activations):
        strength = 0 if value <= 0 else min(4, 1 + int(4 * value / largest))
        text = part.replace("\n", "⏎")
        if joined and joined[-1][1] == strength and strength == 0:
            joined[-1] = (joined[-1][0] + text, 0)
        else:
            joined.append((text, strength))
    return tuple(joined)


def card_of_feature(results: Mapping[str, Result], sae: str, feature: int) -> Card:
    """The card of one feature; the run has a table ``features`` with a row of it."""
    found = results["features"]
    row = found.table.set_index(["sae", "feature"]).loc[(sae, feature)]
    excerpts = found.table.head(0)
    if "feature_cards" in results:
        kept = results["feature_cards"].table
        kept = kept[(kept["sae"] == sae) & (kept["feature"] == feature)]
        excerpts = kept[kept["chosen"] == kept["chosen"].iloc[0]] if len(kept) else kept  # it may be chosen for two reasons
    return _card(row, sae, feature, excerpts, found.params, _more(results, sae, feature))
