"""Sections on experts against features: who carries a topic, what predicts routing, which pairs match, what causes say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import bracket, figure
from moe_probe.features.matching.topic_predictors import TOKENS, topics_served
from moe_probe.report.content import Picture, Section, Table, cut, number, probability, sae_name, some
from moe_probe.report.plots import units as plots_units
from moe_probe.report.sections.verdicts import readable
from moe_probe.studies.verdicts import confirmation

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_ROWS = 25
_CONFIRMED = {"confirmed": "yes", "not confirmed": "no"}


def carriers_section(results: Mapping[str, Result]) -> Section | None:
    """Compare the best expert, group, feature, set of features and set of tokens for every topic."""
    result = results["carriers"]
    table = result.table
    if not {"expert", "feature"} <= set(table.get("kind", ())):  # one of the two could not be measured for any topic
        return None
    feature = table[table["kind"] == "feature"]
    better = feature[feature["beyond_expert_document_low"] > 0]
    named = f": {some(sorted(better['topic']))}" if len(better) else ""
    expert, words = table[table["kind"] == "expert"], _beyond_words(feature)
    finding = (
        f"A single feature tells held-out documents of {len(better)} of {len(feature)} topics better than the best "
        f"expert does, beyond doubt by its interval{named}; the median AUROC is "
        f"{number(float(feature['auroc_document'].median()))} for features and "
        f"{number(float(expert['auroc_document'].median()))} for experts.{words}{_served(results)}"
    )
    heads = (
        "topic",
        "unit",
        "which",
        "label",
        "AUROC of documents [95 %]",
        "AUROC of tokens [95 %]",
        "beyond the best expert [95 %]",
        "beyond the best set of tokens [95 %]",
        "times what words predict [95 %]",
        "experts passed through",
    )
    rows = tuple(
        (
            r["topic"],
            plots_units.KINDS[r["kind"]][1],
            f"{'ids' if r['source'] == TOKENS else sae_name(str(r['source']))}: {str(r['members']).replace('+', ', ')}",
            cut(str(r["label"])),
            _ci(r, "auroc_document", "document"),
            _ci(r, "auroc_token", "token"),
            "–" if r["kind"] == "expert" else _ci(r, "beyond_expert_document", "beyond_expert_document"),
            *_against_words(r),
            _passes(r),
        )
        for _, r in table.sort_values(["topic", "kind"]).iterrows()
    )
    return Section(
        title="Who carries a topic best: an expert, a group, a feature, or words?",
        finding=finding,
        blocks=(
            Picture(
                "carriers",
                plots_units.carriers(table),
                finding,
                "The best unit of each kind for every topic, chosen on other documents. Left: does the share of a "
                "document's tokens on which the unit is active tell the topic? Right: does its activation on a "
                "single token? Dotted: chance.",
            ),
            Table(
                heads,
                rows,
                heading="The best units of every topic",
                note="Tokens: ids and sets of up to 8, chosen as features are. Times what words predict: firings in the "
                "topic's documents over what their tokens predict. Experts passed through: effective number of experts (2 "
                "to the entropy) that the tokens of the unit are sent to in the SAE's layer, of the effective number that "
                "all tokens are sent to.",
            ),
        ),
        how=result.caption,
        limits="The best of thousands of features is compared with the best of far fewer experts: that is what having a "
        "dictionary means, but it is no property of any one feature.",
    )


def _beyond_words(feature: pd.DataFrame) -> str:
    """How many features do better than words, of those that could be compared with words; "" where none could be."""
    if "log2_beyond_words_low" not in feature:
        return ""
    judged = feature[feature["log2_beyond_words_low"].notna()]
    if judged.empty:
        return " None of these features could be compared with words."
    better = judged["log2_beyond_words_low"] > 0
    for rival in ("beyond_token_document", "beyond_tokens_document"):
        if rival in judged:  # without a difference there is no such rival: no token, or no set that is better than one token
            better &= judged[rival].isna() | (judged[f"{rival}_low"] > 0)
    left = len(feature) - len(judged)
    more = f" {left} more could not be compared with words." if left else ""
    return (
        f" {int(better.sum())} of {len(judged)} features do better than words: than the best set of up to 8 tokens, and than "
        f"their own tokens predict.{more}"
    )


def _against_words(row: Any) -> tuple[str, str]:
    """The difference from the best set of tokens (or token, where no set is better), and firings over their prediction."""
    rival = "tokens" if row.get("beyond_tokens_document", np.nan) == row.get("beyond_tokens_document", np.nan) else "token"
    if row["kind"] in ("token", "tokens") or f"beyond_{rival}_document" not in row:
        return "–", "–"
    log2 = [float(row.get(f"log2_beyond_words{end}", np.nan)) for end in ("", "_low", "_high")]
    times = "–" if log2[0] != log2[0] else "{} [{}, {}]".format(*(number(2**x) for x in log2))
    return _ci(row, f"beyond_{rival}_document", f"beyond_{rival}_document"), times


def _served(results: Mapping[str, Result]) -> str:
    """How many topics an expert serves."""
    if "expert_topics" not in results:
        return ""
    table = results["expert_topics"].table
    wide = table.pivot_table(index=["layer", "expert"], columns="topic", values="share").fillna(0.0).to_numpy()
    served = topics_served(wide)
    return (
        f" An expert serves {number(float(np.nanmedian(served)), 1)} of {wide.shape[1]} topics in the median, by "
        f"effective number, the most devoted one {number(float(np.nanmin(served)), 1)}."
    )


def _passes(row: Any) -> str:
    value = row.get("effective_experts", float("nan"))
    return "–" if value != value else f"{number(float(value), 1)} of {number(float(row['effective_experts_all']), 1)}"


def _ci(row: Any, name: str, prefix: str) -> str:
    if row[name] != row[name]:
        return "–"
    return f"{number(float(row[name]))} [{number(float(row[f'{prefix}_low']))}, {number(float(row[f'{prefix}_high']))}]"


def predicted_section(results: Mapping[str, Result]) -> Section:
    """Show how much of the routing features predict, beside tokens and random directions."""
    result = results["routing_predicted"]
    table = result.table
    by_layer = []
    for layer, part in table.groupby("layer"):
        best = part[part["inputs"] == "features"].sort_values("recall").iloc[-1]
        plain = part[part["inputs"] == "token and the one before"].iloc[0]
        blind = part[(part["inputs"] == "random directions") & (part["sae"] == best["sae"])].iloc[0]
        first, second, third = (figure(row["recall"], ".0%", "an unknown share") for row in (best, plain, blind))
        by_layer.append(
            f"layer {layer}: {first} from {int(best['width']):,} features, {second} from the token and the one "
            f"before, {third} from as many random directions"
        )
    finding = "Recall of the chosen experts on held-out documents: " + "; ".join(by_layer) + "."
    table = table.assign(name=plots_units.input_names(table))
    rows = tuple(
        (
            str(int(r["layer"])),
            str(r["name"]),
            f"{figure(r['recall'], '.1%', '–')} {bracket(r['recall_low'], r['recall_high'], '.1%')}",
            f"{number(float(r['bits']))} [{number(float(r['bits_low']))}, {number(float(r['bits_high']))}]",
        )
        for _, r in table.sort_values(["layer", "recall"]).iterrows()
    )
    return Section(
        title="How much of the routing do features predict?",
        finding=finding,
        blocks=(
            Picture(
                "routing_predicted",
                plots_units.prediction_bars(table),
                finding,
                "Share of the chosen experts that are among the k likeliest by a regression on each kind of "
                "input. Orange: features; grey: as many random directions of the same sparsity; blue: what needs "
                "no model.",
            ),
            Table(
                ("layer", "inputs", "recall [95 %]", "bits saved a selection [95 %]"), rows, heading="What predicts routing"
            ),
        ),
        how=result.caption,
        limits="Features of the router's own input predict the router because it reads that input: what random directions of "
        "the same number give for nothing is the fair comparison, not chance.",
    )


def matches_section(results: Mapping[str, Result]) -> Section:
    """Show the pairs of expert and feature that go together most, with what else would tell the expert."""
    result = results["matches"]
    first = result.table[result.table["rank"] == 1]
    baselines = results["match_baselines"].table if "match_baselines" in results else None
    known = first.copy()
    if baselines is not None:
        known = known.merge(baselines.drop(columns=["width", "sae_layer"]), on=["sae", "layer", "expert"], how="left")
    significant = first[first["significant"]]
    n_experts = len(first.groupby(["layer", "expert"]))
    told = len(significant.groupby(["layer", "expert"]))
    finding = (
        f"{told} of {n_experts} experts have a feature, chosen on other documents, that tells them better than the "
        f"best of as many random directions; the median held-out AUROC of the best feature is "
        f"{number(float(first.groupby(['layer', 'expert'])['heldout_score'].max().median()))}."
    )
    if "match_sets" in results and len(sets := results["match_sets"].table):
        finding += (
            f" Up to four features together tell the experts of their own layer with a median AUROC of "
            f"{number(float(sets['set_auroc'].median()))}, against {number(float(sets['single_auroc'].median()))} "
            "for the best one alone."
        )
    strong = (
        known.sort_values("heldout_bits", ascending=False, kind="stable").drop_duplicates(["layer", "expert"]).head(_ROWS)
    )
    heads = (
        "expert",
        "feature",
        "label",
        "AUROC",
        "precision",
        "recall",
        "lift",
        "q",
        "best token",
        "best token pair",
        "best topic",
        "random",
        "shuffled",
        "cosine with router",
    )
    rivals = ("token_score", "token_pair_score", "topic_score", "random_score", "shuffled_score")
    rows = tuple(
        (
            f"layer {int(r['layer'])}, expert {int(r['expert'])}",
            f"{sae_name(str(r['sae']))}: {int(r['feature'])}",
            cut(str(r["label"])),
            number(float(r["heldout_score"])),
            figure(r["precision"], ".0%", "–"),
            figure(r["recall"], ".0%", "–"),
            number(float(r["heldout_lift"]), 1),
            probability(float(r["q_value"])),
            *(number(float(r[c])) if c in r else "–" for c in rivals),
            number(float(r["router_cosine"])),
        )
        for _, r in strong.iterrows()
    )
    return Section(
        title="Which features go with which experts?",
        finding=finding,
        blocks=(
            Table(
                heads,
                rows,
                heading=f"The {len(rows)} pairs that share most information, one an expert",
                note="AUROC of “the feature fires” for “the expert is chosen” on held-out documents, and that of the "
                "best rival of each kind. All are in results/matches.parquet.",
            ),
        ),
        how=result.caption,
        limits="An expert that serves many features has no feature that tells all of its tokens: a low recall with a high "
        "precision is what many features to one expert look like.",
    )


def causes_section(results: Mapping[str, Result]) -> Section:
    """Show what the loss does without each unit."""
    result = results["ablation"]
    table, params = result.table, result.params
    own = table[table["held_to"]]
    yes = own[own["confirmed"]]
    experts = yes[yes["sae"] == ""]
    features = yes[yes["sae"] != ""]
    finding = (
        "Without it the loss rises on its own topic, more than on others and more than without units of the same "
        f"load, for {len(experts)} of {int((own['sae'] == '').sum())} pairs of topic and expert{_names(experts)}"
    )
    if (own["sae"] != "").any():
        finding += f" and {len(features)} of {int((own['sae'] != '').sum())} pairs of topic and feature{_names(features)}"
    finding += "."
    if len(own) and own["control_nats"].isna().all():
        finding = (
            "Units were knocked out without control units, so nothing can be confirmed: a rise may be what any unit of "
            "the same load shows."
        )
    heads = (
        "topic",
        "without",
        "how",
        "rise of the loss, nats [95 %]",
        "without controls",
        "beyond controls [95 %]",
        "beyond other topics [95 %]",
        "confirmed",
    )
    ordered = own.sort_values(["topic", "sae", "unit"])
    rows = tuple(
        (
            r["topic"],
            readable(str(r["unit"])),
            r["how"],
            _nats(r, "delta_nats", "ci"),
            _plain_nats(r["control_nats"]),
            _nats(r, "beyond_control", "beyond_control"),
            _nats(r, "beyond_others", "beyond_others"),
            _CONFIRMED.get(confirmation(r), confirmation(r)),
        )
        for _, r in ordered.iterrows()
    )
    return Section(
        title="What happens without them?",
        finding=finding,
        blocks=(
            Picture(
                "ablation",
                plots_units.ablation_matrix(table),
                finding,
                "Rise of the loss on each topic (columns) without each unit (rows); blue: a fall. A dot: the topic "
                "that the unit was put forward for; a star: confirmed there.",
            ),
            Table(
                heads,
                rows,
                heading="Units and their own topics",
                note=f"{params['documents']} held-out documents, {params['tokens']:,} tokens; loss as is "
                f"{params['loss_nats']:.3f} nats.",
            ),
        ),
        how=result.caption,
        limits="Confirmed pairs are counted among many that were tried, at 95 % each, with no correction: one in some "
        "hundred would pass by chance. A missing rise is no proof of no role: the next best expert may know the same.",
    )


def _names(part: pd.DataFrame) -> str:
    return f" ({some(sorted(part['topic']))})" if len(part) else ""


def _plain_nats(value: float) -> str:
    return "–" if value != value else f"{value:+.3f}"


def _nats(row: Any, name: str, prefix: str) -> str:
    if row[name] != row[name]:
        return "–"
    if row[f"{prefix}_low"] != row[f"{prefix}_low"]:
        return f"{row[name]:+.3f} (no interval)"
    return f"{row[name]:+.3f} [{row[f'{prefix}_low']:+.3f}, {row[f'{prefix}_high']:+.3f}]"
