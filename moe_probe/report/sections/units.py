"""Sections on experts beside features: the best predictors of a topic, what predicts routing, and which pairs match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.text import bracket, clipped, figure, is_missing, listed
from moe_probe.features.matching.topic_predictors import TOKENS, effective_topics
from moe_probe.report.cells import Row, number, probability, ranged, sae_name, spelled, table_of
from moe_probe.report.content import Picture, Section, Table
from moe_probe.report.plots import units as plots_units

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_ROWS = 25


def carriers_section(results: Mapping[str, Result]) -> Section | None:
    """Compare the best expert, group, feature, set of features and set of tokens for every topic."""
    result = results["carriers"]
    table = result.table
    if not {"expert", "feature"} <= set(table.get("kind", ())):  # one of the two could not be measured for any topic
        return None
    finding = _carried(table) + _beyond_words(table[table["kind"] == "feature"]) + _served(results)
    picture = Picture(
        "carriers",
        plots_units.carriers(table),
        finding,
        "The best unit of each kind for every topic, chosen on other documents. Left: AUROC by the share of a document's "
        "tokens on which it is active; right: by its activation on one token. Dotted: chance.",
    )
    return Section(
        title="Who carries a topic best: an expert, a group, a feature, or words?",
        finding=finding,
        blocks=(picture, _best_units(table)),
        how=f"{result.caption} Tokens: ids, and sets of up to 8, chosen as features are. Times what words predict: firings in "
        "the topic's documents over what their tokens predict. Experts passed through: effective number of experts (2 to the "
        "entropy) that the unit's tokens are routed to in the SAE's layer, of the effective number for all tokens.",
        limits="The best of thousands of features is compared with the best of far fewer experts. That is what having a "
        "dictionary means, but it is no property of any one feature.",
    )


def _carried(table: pd.DataFrame) -> str:
    feature, expert = (table[table["kind"] == kind] for kind in ("feature", "expert"))
    better = feature[feature["beyond_expert_document_low"] > 0]
    named = f" These topics are {listed(sorted(better['topic']), 8)}." if len(better) > 1 else ""
    return (
        f"For {len(better)} of {len(feature)} topics, one feature separates held-out documents better than the best expert "
        f"(interval above 0).{named} The median AUROC is {number(float(feature['auroc_document'].median()))} for features "
        f"and {number(float(expert['auroc_document'].median()))} for experts."
    )


def _best_units(table: pd.DataFrame) -> Table:
    beyond_expert = ranged("beyond_expert_document", "beyond_expert_document")
    return table_of(
        table.sort_values(["topic", "kind"]),
        {
            "topic": "topic",
            "unit": lambda row: plots_units.KINDS[row["kind"]][1],
            "which": lambda row: (
                f"{'ids' if row['source'] == TOKENS else sae_name(str(row['source']))}: {spelled(row['members'])}"
            ),
            "label": ("label", lambda value: clipped(str(value), 60)),
            "AUROC of documents [95 %]": ranged("auroc_document", "document"),
            "AUROC of tokens [95 %]": ranged("auroc_token", "token"),
            "beyond the best expert [95 %]": lambda row: "–" if row["kind"] == "expert" else beyond_expert(row),
            "beyond the best set of tokens [95 %]": _beyond_tokens,
            "times what words predict [95 %]": _times_words,
            "experts passed through": _passes,
        },
        heading="The best units of every topic",
        note="Beyond: difference in AUROC of documents. Times what words predict: 1 if the unit fires as its tokens alone let "
        "one expect.",
    )


def _beyond_words(feature: pd.DataFrame) -> str:
    """Count the features that do better than words, of those that could be compared with words; "" without such a test."""
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
        f" {int(better.sum())} of {len(judged)} features do better than words: better than the best set of up to 8 tokens, and "
        f"firing more than their own tokens predict.{more}"
    )


def _beyond_tokens(row: Row) -> str:
    """Write the difference from the best set of tokens, or from the best token where no set is better."""
    rival = "token" if is_missing(row.get("beyond_tokens_document")) else "tokens"
    if row["kind"] in ("token", "tokens"):
        return "–"
    return ranged(f"beyond_{rival}_document", f"beyond_{rival}_document")(row)


def _times_words(row: Row) -> str:
    log2 = [float(row.get(f"log2_beyond_words{end}", np.nan)) for end in ("", "_low", "_high")]
    if row["kind"] in ("token", "tokens") or is_missing(log2[0]):
        return "–"
    return "{} [{}, {}]".format(*(number(2**x) for x in log2))


def _served(results: Mapping[str, Result]) -> str:
    """Say how many topics an expert serves."""
    if "expert_topics" not in results:
        return ""
    table = results["expert_topics"].table
    shares = table.pivot_table(index=["layer", "expert"], columns="topic", values="share").fillna(0.0).to_numpy()
    served = effective_topics(shares)
    return (
        f" An expert serves {number(float(np.nanmedian(served)), 1)} of {shares.shape[1]} topics in the median, by "
        f"effective number; the most specialised one serves {number(float(np.nanmin(served)), 1)}."
    )


def _passes(row: Row) -> str:
    experts = row.get("effective_experts", np.nan)
    return "–" if is_missing(experts) else f"{number(float(experts), 1)} of {number(float(row['effective_experts_all']), 1)}"


def predicted_section(results: Mapping[str, Result]) -> Section:
    """Show how much of the routing features predict, compared with tokens and random directions."""
    result = results["routing_predicted"]
    table = result.table
    by_layer = []
    for layer, part in table.groupby("layer"):
        best = part[part["inputs"] == "features"].sort_values("recall").iloc[-1]
        token = part[part["inputs"] == "token and the one before"].iloc[0]
        random = part[(part["inputs"] == "random directions") & (part["sae"] == best["sae"])].iloc[0]
        first, second, third = (figure(row["recall"], ".0%", "an unknown share") for row in (best, token, random))
        by_layer.append(
            f"In layer {layer}, {int(best['width']):,} features recall {first} of the selected experts, the token and the one "
            f"before {second}, as many random directions {third}."
        )
    finding = " ".join(by_layer)
    table = table.assign(name=plots_units.input_names(table))
    picture = Picture(
        "routing_predicted",
        plots_units.prediction_bars(table),
        finding,
        "Share of the selected experts among the k likeliest by a regression on each kind of input. Orange: features; grey: as "
        "many random directions of the same sparsity; blue: inputs that need no model.",
    )
    shown = table_of(
        table.sort_values(["layer", "recall"]),
        {
            "layer": "layer",
            "inputs": "name",
            "recall [95 %]": lambda row: (
                f"{figure(row['recall'], '.1%', '–')} {bracket(row['recall_low'], row['recall_high'], '.1%')}"
            ),
            "bits saved per selection [95 %]": ranged("bits", "bits"),
        },
        heading="What predicts routing",
    )
    return Section(
        title="How much of the routing do features predict?",
        finding=finding,
        blocks=(picture, shown),
        how=result.caption,
        limits="Features of the router's own input predict the router because it reads that input. Compare them with as many "
        "random directions, not with chance.",
    )


def matches_section(results: Mapping[str, Result]) -> Section:
    """Show the pairs of expert and feature that share most information, with the rivals that predict the expert."""
    result = results["matches"]
    first = result.table[result.table["rank"] == 1]
    by_expert = first.groupby(["layer", "expert"])
    n_matched = len(first[first["significant"]].groupby(["layer", "expert"]))
    finding = (
        f"{n_matched} of {len(by_expert)} experts have a feature that predicts their selection better than the best of as many "
        f"random directions. The feature was chosen on other documents. The median held-out AUROC of the best feature is "
        f"{number(float(by_expert['heldout_score'].max().median()))}."
    )
    if "match_sets" in results and len(sets := results["match_sets"].table):
        finding += (
            f" Up to four features together predict the experts of their own layer with a median AUROC of "
            f"{number(float(sets['set_auroc'].median()))}, compared with {number(float(sets['single_auroc'].median()))} "
            "for the best one alone."
        )
    known = first
    if "match_baselines" in results:
        rivals = results["match_baselines"].table.drop(columns=["width", "sae_layer"])
        known = first.merge(rivals, on=["sae", "layer", "expert"], how="left")
    strong = known.sort_values("heldout_bits", ascending=False, kind="stable").drop_duplicates(["layer", "expert"])
    shown = table_of(
        strong.head(_ROWS),
        {
            "expert": lambda row: f"layer {row['layer']}, expert {row['expert']}",
            "feature": lambda row: f"{sae_name(str(row['sae']))}: {row['feature']}",
            "label": ("label", lambda value: clipped(str(value), 60)),
            "AUROC": ("heldout_score", 2),
            "precision": ("precision", ".0%"),
            "recall": ("recall", ".0%"),
            "lift": ("heldout_lift", 1),
            "q": ("q_value", probability),
            "best token": ("token_score", 2),
            "best token pair": ("token_pair_score", 2),
            "best topic": ("topic_score", 2),
            "random": ("random_score", 2),
            "shuffled": ("shuffled_score", 2),
            "cosine with router": ("router_cosine", 2),
        },
        heading=f"The {min(_ROWS, len(strong))} pairs that share most information, one per expert",
        note="AUROC of “the feature fires” for “the expert is selected” on held-out documents, and that of the "
        "best rival of each kind. All are in results/matches.parquet.",
    )
    return Section(
        title="Which features go with which experts?",
        finding=finding,
        blocks=(shown,),
        how=result.caption,
        limits="An expert that serves many features has no feature that covers all of its tokens. A low recall with a high "
        "precision is what many features to one expert look like.",
    )
