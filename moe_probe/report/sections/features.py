"""Sections on sparse autoencoders: how faithful they are, and what their features respond to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.core.text import figure, is_missing
from moe_probe.core.units import UnitRef
from moe_probe.report.cells import lift_cell, number, probability, ranged, sae_name, table_of
from moe_probe.report.content import Block, Card, Cards, Link, Passage, Picture, Rich, Section, Table
from moe_probe.report.links import expert_link, glued, joined, unit_key
from moe_probe.report.passages import shaded
from moe_probe.report.plots import saes as plots
from moe_probe.report.sections.experts import rises
from moe_probe.report.sections.related import strongest_features

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_FEATURES = "What do the features say?"
_SHOWN = 6
#: Cards of features that verdicts name, or that go with experts that verdicts name, at most.
_NAMED = 64
#: Features of topics that are listed.
_TOPIC_ROWS = 15


def sae_section(results: Mapping[str, Result]) -> Section:
    """Show the measures of every SAE on held-out documents."""
    result = results["sae_quality"]
    table = result.table
    known = table[table["ce_recovered"].notna()]
    finding = (
        f"Reconstructions leave {number(float(table['fvu'].min()))} to {number(float(table['fvu'].max()))} of the "
        f"variance unexplained with {number(float(table['l0'].mean()), 0)} active latents per token"
    )
    finding += (
        f". Spliced into the model, they recover {float(known['ce_recovered'].min()):.0%} to "
        f"{float(known['ce_recovered'].max()):.0%} of the activation's effect on the loss."
        if len(known)
        else "."
    )
    picture = Picture(
        "sae_pareto",
        plots.sae_pareto(table),
        finding,
        "Left: variance unexplained on held-out documents against active latents per token, or against width where all have as "
        "many; lower is better. Right: the share of the activation's effect on the loss that the reconstruction keeps.",
    )
    measures = table_of(
        table,
        {
            "SAE": ("sae", sae_name),
            "activation site": ("hook", lambda hook: str(hook).replace("_", " ")),
            "L0": ("l0", 1),
            "FVU": ("fvu", 3),
            "loss recovered [95 %]": ranged("ce_recovered", "ce_recovered", ".1%"),
            "against the mean": ("ce_recovered_mean", 2),
            "dead": ("dead", ".1%"),
            "dense": ("dense", ".1%"),
            "redundancy": ("redundancy", 2),
            "seconds": ("train_seconds", 1),
        },
        heading="SAEs",
    )
    return Section(
        title="How faithful are the sparse autoencoders?",
        finding=finding,
        blocks=(picture, measures),
        how=result.caption,
        limits="A low FVU means that sums of features reconstruct the activation, not that single features mean something. "
        "Where zero-ablating the activation costs little, the share recovered is of a small effect.",
    )


def features_section(results: Mapping[str, Result]) -> Section:
    """Show how many features have a good label, what labels are about, topics, and cards."""
    result = results["features"]
    table, params = result.table, result.params
    living = table[table["density"] > 0]
    if living.empty:
        return Section(title=_FEATURES, finding="No feature fires on this corpus.", how=result.caption)
    share = living["good"].mean()
    blocks: list[Block] = [_by_sae(table, params), _by_rule(living), _topics(living, params)]
    if "feature_cards" in results:
        blocks += _cards(results)
    return Section(
        title=_FEATURES,
        finding=f"{int(living['good'].sum()):,} of {len(living):,} living features ({share:.0%}) have a label that predicts "
        "where they fire on held-out text.",
        blocks=tuple(blocks),
        how=result.caption,
        limits="Rules are narrow: a feature about an idea that many words express gets a low score although a "
        "person might see the idea. A good label predicts where a feature fires, not what it does. "
        "Words are put together from tokens: a label may name a word of which the feature sees a part.",
    )


def _by_sae(table: pd.DataFrame, params: Mapping[str, Any]) -> Table:
    rows = []
    for name, part in table.groupby("sae", sort=False):
        living = part[part["density"] > 0]
        scored, tested, measured = (living[living[column].notna()] for column in ("label_score", "topic_q", "auroc_topic"))
        rows.append(
            (
                sae_name(str(name)),
                number(len(living)),
                f"{len(living) / len(part):.0%}",
                figure(living["good"].mean(), ".0%", "–"),
                number(float(scored["label_score"].median())),
                figure((tested["topic"] != "").mean(), ".0%", "–"),
                figure((measured["auroc_topic"] >= 0.9).mean(), ".1%", "–"),
            )
        )
    label = params["by"]
    heads = ("SAE", "living features", "of all", "good label", "median label score")
    return Table(
        (*heads, f"fire more for a {label}", f"separate a {label}'s documents (AUROC ≥ 0.9)"),
        tuple(rows),
        heading="Features of each SAE",
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
        ("labels are about", "features", "good", "median score", "best example"),
        tuple(rows),
        heading="What labels are about",
        note="The rule that predicts best, on held-out text, where a feature fires.",
    )


def shortened(label: str) -> str:
    """Return a label's first parts, and how many more there are."""
    parts = label.split(", ")
    return label if len(parts) <= _SHOWN else f"{', '.join(parts[:_SHOWN])} and {len(parts) - _SHOWN} more"


def _topics(living: pd.DataFrame, params: Mapping[str, Any]) -> Table:
    label = params["by"]
    best = living[living["topic"] != ""].sort_values("auroc_topic", ascending=False, kind="stable").groupby("topic").head(1)
    return table_of(
        best.head(_TOPIC_ROWS),
        {
            label: "topic",
            "SAE": ("sae", sae_name),
            "feature": "feature",
            "AUROC, held-out documents": ("auroc_topic", 2),
            "lift [95 %]": lift_cell("topic_"),
            "q": ("topic_q", probability),
            "density": ("density", ".2%"),
            "label of the feature": ("label", shortened),
        },
        heading=f"The feature that separates each {label} best",
        note=f"The feature of all SAEs that separates a {label}'s held-out documents best. It is chosen by this AUROC: take "
        "the value as an upper end.",
    )


def _cards(results: Mapping[str, Result]) -> list[Block]:
    cards = results["feature_cards"].table
    headings = {
        "topic": f"Cards of features that separate a {results['features'].params['by']}",
        "best": "Cards of features with good labels",
        "drawn": "Cards of features drawn at random",
    }
    rows = results["features"].table.set_index(["sae", "feature"])
    blocks: list[Block] = []
    for chosen, heading in headings.items():
        groups = cards[cards["chosen"] == chosen].groupby(["sae", "feature"], sort=False)
        made = tuple(_card(results, rows.loc[key], excerpts) for key, excerpts in groups)
        if made:
            blocks.append(Cards(f"{heading} ({len(made)})", made))
    shown = set(zip(cards["sae"], cards["feature"], strict=True))
    further = [key for key in _named(results) if key not in shown and key in rows.index]
    if further:
        made = tuple(_card(results, rows.loc[key], cards.head(0)) for key in further)
        blocks.append(
            Cards(f"Cards of further features: best of a topic, or of an expert that a verdict names ({len(made)})", made)
        )
    return blocks


def _named(results: Mapping[str, Result]) -> list[tuple[str, int]]:
    """List the features that verdicts name as the best of a topic, and those that go best with their experts."""
    if "verdicts" not in results or "feature" not in results["verdicts"].table:
        return []
    verdicts = results["verdicts"].table
    units = (UnitRef.parse(text) for text in verdicts["feature"] if text)
    found = [(unit.sae, unit.members[0]) for unit in units]
    if "matches" in results:
        by_expert = dict(iter(results["matches"].table.groupby(["layer", "expert"])))
        for key in zip(verdicts["layer"], verdicts["expert"], strict=True):
            rows = (
                strongest_features(by_expert[key])
                if not any(map(is_missing, key)) and key in by_expert
                else verdicts.head(0)
            )
            found += [(str(row.sae), int(row.feature)) for row in rows.itertuples()]
    return list(dict.fromkeys(found))[:_NAMED]


def _through(results: Mapping[str, Result], sae: str, feature: int) -> Rich:
    """Name the experts that the feature's tokens are routed to; "" where features were not matched with experts."""
    if "feature_experts" not in results:
        return ""
    table = results["feature_experts"].table
    experts = table[(table["sae"] == sae) & (table["feature"] == feature)].sort_values("rank")
    if experts.empty:
        return "it fires on too few held-out tokens to say"
    links = [expert_link(int(r.layer), int(r.expert), f"expert {int(r.expert)}") for r in experts.itertuples()]
    parts = (f" ({r.share:.0%} of their selections, {r.lift:.1f}×)" for r in experts.itertuples())
    most = joined([glued(link, part) for link, part in zip(links, parts, strict=True)])
    first = experts.iloc[0]
    effective = (
        f"its tokens go through {number(float(first['effective_experts']), 1)} experts by effective number (all tokens: "
        f"{number(float(first['effective_experts_all']), 1)}), most through "
    )
    return glued(effective, most)


def _without(results: Mapping[str, Result], sae: str, feature: int) -> str:
    if "ablation" not in results:
        return ""
    table = results["ablation"].table
    return rises(table[(table["sae"] == sae) & (table["members"].astype(str) == str(feature))], 4)


def _card(results: Mapping[str, Result], row: pd.Series, excerpts: pd.DataFrame) -> Card:
    """Write a feature's card from its row of ``features``, indexed by SAE and feature."""
    (sae, feature), params = row.name, results["features"].params
    topic = (
        f"{row['topic']} ({number(float(2 ** row['topic_log2_lift']))}×, q {probability(float(row['topic_q']))}; AUROC of "
        f"held-out documents {number(float(row['auroc_topic']))})"
        if row["topic"]
        else "none passes"
    )
    score = (
        f"{number(float(row['label_score']))} (nearest feature: {number(float(row['label_hard_score']))}; "
        f"precision {number(float(row['label_precision']))}, recall {number(float(row['label_recall']))})"
    )
    facts: list[tuple[str, Rich]] = [("label", str(row["label"])), ("label score", score), (params["by"], topic)]
    if params.get("finer") and row[params["finer"]]:
        facts.append((str(params["finer"]), str(row[params["finer"]])))
    facts += [
        ("fires on", f"{float(row['density']):.2%} of tokens, most on: {row['top_tokens'] or '–'}"),
        ("nearest feature", glued(_linked(sae, row["nearest"]), f" (cosine {number(float(row['nearest_cosine']))})")),
        ("experts", _through(results, sae, int(feature))),
        ("without it", _without(results, sae, int(feature))),
    ]
    largest = float(row["max_activation"]) or 1.0
    passages = tuple(Passage(str(r.part), shaded(r.tokens, r.activations, largest=largest)) for r in excerpts.itertuples())
    title = f"{sae_name(sae)}, feature {feature}: {shortened(str(row['label'])) or 'no label'}"
    return Card(
        title, tuple((name, text) for name, text in facts if text), passages, unit_key(UnitRef((int(feature),), sae=sae))
    )


def _linked(sae: str, feature: Any) -> Link:
    return Link(f"feature {int(feature)}", unit_key(UnitRef((int(feature),), sae=sae)))


def card_of_feature(results: Mapping[str, Result], sae: str, feature: int) -> Card:
    """Write the card of one feature.

    Parameters
    ----------
    results : mapping of str to Result
        With a table ``features`` that has a row of it.
    sae : str
        Folder of the SAE.
    feature : int

    Returns
    -------
    Card
    """
    table = results["features"].table
    excerpts = table.head(0)
    if "feature_cards" in results:
        cards = results["feature_cards"].table
        excerpts = cards[(cards["sae"] == sae) & (cards["feature"] == feature)]
        if len(excerpts):  # it may be chosen for two reasons
            excerpts = excerpts[excerpts["chosen"] == excerpts["chosen"].iloc[0]]
    return _card(results, table.set_index(["sae", "feature"]).loc[(sae, feature)], excerpts)
