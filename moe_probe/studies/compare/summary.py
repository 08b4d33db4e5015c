"""All differences in one table, and what stands out in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.text import bracket, figure, some_of
from moe_probe.studies.compare.answer import course, opening_lines

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = [
    *("side_a", "side_b", "question", "subject", "measure", "value_a", "value_b", "difference"),
    *("ci_low", "ci_high", "q_value", "beyond", "method"),
]
MEASURES = {
    "decode_accuracy": "label decoded from routing",
    "decode_skill": "label decoded from routing, over guessing",
    "mi_bits": "bits about the label",
    "entropy_bits": "entropy of loads",
    "effective_experts": "effective experts",
    "effective_share": "effective experts, share of all",
    "load_cv": "imbalance of loads",
    "fvu": "variance unexplained",
    "ce_recovered": "loss recovered",
    "dead": "dead latents",
    "good_labels": "features with a good label",
    "topics_carried": "topics carried by a feature",
    "log2_lift": "log2 lift",
    "variance": "variance explained",
}


def all_differences(tables: Mapping[str, Result]) -> Result:
    """Join the tables of differences into one.

    Parameters
    ----------
    tables : mapping of str to Result
        Of a comparison, by name.

    Returns
    -------
    Result
        ``comparison_differences``: ``side_a, side_b, question`` (topic, layer, expert, SAE), ``subject, measure, value_a,
        value_b, difference, ci_low, ci_high, q_value`` (within its own table), ``beyond, method``.
    """
    import pandas as pd

    parts, several = [], _several(tables)
    for name, describe in (
        ("comparison_topics", _topic),
        ("comparison_layers", _layer),
        ("comparison_experts", _expert),
        ("comparison_sae_differences", _sae),
    ):
        if name in tables:
            table = tables[name].table
            if several:  # widths within a run are no difference between runs
                table = table[table["side_a"] != table["side_b"]]
            if len(table):
                parts.append(table.assign(**describe(table))[_COLUMNS])
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)
    return Result(
        "comparison_differences",
        table,
        caption="Every difference between sides, second less first; beyond: more than chance would make (q at most "
        "0.05 within its table).",
    )


def _several(tables: Mapping[str, Result]) -> bool:
    return "comparison_runs" in tables and tables["comparison_runs"].table["side"].nunique() > 1


def _topic(table: pd.DataFrame) -> dict[str, Any]:
    return {"question": "topic", "subject": table["topic"].astype(str), "measure": "log2_lift"}


def _layer(table: pd.DataFrame) -> dict[str, Any]:
    same = table["layer_a"] == table["layer_b"]
    subject = np.where(
        same,
        "layer " + table["layer_a"].astype(str),
        "layers " + table["layer_a"].astype(str) + " and " + table["layer_b"].astype(str),
    )
    return {"question": "layer", "subject": subject}


def _expert(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "question": "expert",
        "measure": "variance",
        "subject": "layer " + table["layer"].astype(str) + ", expert " + table["expert"].astype(str),
    }


def _sae(table: pd.DataFrame) -> dict[str, Any]:
    widths = np.where(
        table["width_a"] == table["width_b"],
        table["width_a"].map("{:,}".format),
        table["width_a"].map("{:,}".format) + " to " + table["width_b"].map("{:,}".format),
    )
    return {"question": "SAE", "subject": [f"layer {x}, width {w}" for x, w in zip(table["layer"], widths, strict=True)]}


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """Replace the names of a table's measures by words."""
    return table.assign(measure=[MEASURES.get(str(m), m) for m in table["measure"]])


def headlines(tables: Mapping[str, Result]) -> list[str]:
    """Say what stands out, in sentences: the answer, then verdicts changed, differences beyond chance, experts matched.

    Of more than two runs, the first and the last are told in detail; their course in between is a line.
    """
    out = opening_lines(tables)
    several = _several(tables)
    sides = list(dict.fromkeys(tables["comparison_runs"].table["side"])) if several else []
    for name, tell in (
        ("comparison_changes", _changes),
        ("comparison_topics", _topics),
        ("comparison_layers", _layers),
        ("aligned_layers", _aligned),
        ("comparison_saturation", _saturation),
        ("comparison_sae_differences", _saes),
    ):
        if name in tables:
            for pair, part in tables[name].table.groupby(["side_a", "side_b"], sort=False):
                # widths within a run are no difference between runs; runs between the first and the last are in the tables
                if several and (pair[0] == pair[1] or (len(sides) > 2 and pair[1] != sides[-1])):
                    continue
                out += [line for line in tell(part, str(pair[0]), str(pair[1])) if line]
    return list(dict.fromkeys(out))


def _changes(part: pd.DataFrame, a: str, b: str) -> list[str]:
    changed = part[part["changed"]]
    lead = f"{a} against {b}: "
    if changed.empty:
        return [f"{lead}no verdict of {len(part)} changed.", _kept(part)]
    changes = some_of((f"{r.topic}, {r.verdict_a} to {r.verdict_b}" for r in changed.itertuples()), joint="; ")
    near = int((~changed["beyond"] & ~changed[["verdict_a", "verdict_b"]].eq("feature only").any(axis=1)).sum())
    tail = f" {near} of them while the lift does not differ beyond chance." if near else ""
    return [f"{lead}{len(changed)} of {len(part)} verdicts changed: {changes}.{tail}", _kept(part)]


def _kept(part: pd.DataFrame) -> str:
    topics_of = {answer: list(part.loc[part["same_experts"] == answer, "topic"]) for answer in ("yes", "no", "unclear")}
    words = {
        "yes": "it is the same for {}",
        "no": "it is another for {}",
        "unclear": "documents and tokens disagree on whether it is the same for {}",
    }
    told = "; ".join(words[answer].format(some_of(topics)) for answer, topics in topics_of.items() if topics)
    return f"Where both have an expert, matched by what it does: {told}." if told else ""


def _topics(part: pd.DataFrame, a: str, b: str) -> list[str]:
    beyond = part[part["beyond"]]
    if beyond.empty:
        return [f"Best experts: for none of {len(part)} topics does the lift differ between {a} and {b} beyond chance."]
    told = [
        f"{r.topic} {r.difference:+.2f} {bracket(r.ci_low, r.ci_high, '+.2f')}"
        for r in beyond.sort_values("difference", key=abs, ascending=False).head(4).itertuples()
    ]
    more = f" and {len(beyond) - 4} more" if len(beyond) > 4 else ""
    return [
        (
            f"Best experts: for {len(beyond)} of {len(part)} topics the log2 lift differs beyond chance ({b} less {a}): "
            f"{', '.join(told)}{more}."
        )
    ]


def _layers(part: pd.DataFrame, a: str, b: str) -> list[str]:
    out = []
    for measure, same in part.groupby("measure", sort=False):
        beyond = same[same["beyond"]]
        if measure in ("effective_share", "entropy_bits") or beyond.empty:  # effective experts say the same
            continue
        ways = [
            f"{word} in {_listed(list(beyond.loc[sign, 'layer_a']), len(same))}"
            for word, sign in (("higher", beyond["difference"] > 0), ("lower", beyond["difference"] < 0))
            if sign.any()
        ]
        size = f", by {beyond['difference'].abs().mean():.3g} on average" if len(ways) == 1 else ""
        name = MEASURES[str(measure)]
        out.append(f"{name[0].upper()}{name[1:]}, {b} against {a}: {' and '.join(ways)}{size}.")
    return out or [f"Layers: no measure differs between {a} and {b} beyond chance."]


def _listed(layers: list[int], of: int) -> str:
    if len(layers) == of:
        return "every layer"
    if len(layers) > 8:
        return f"{len(layers)} of {of} layers"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _aligned(part: pd.DataFrame, a: str, b: str) -> list[str]:
    measure = "tokens" if (part["measure"] == "tokens").any() else "documents"
    matched = part[part["measure"] == measure]
    what = "share of the tokens of either that chose both" if measure == "tokens" else "correlation of usage over documents"
    text = (
        f"Experts of {a} matched to those of {b}: {what} {figure(matched['mean_score'].mean(), '.2f', 'unknown')} on average, "
        f"{figure(matched['null_mean'].mean(), '.2f', 'unknown')} by chance"
    )
    if matched["same_number_share"].notna().all():
        text += f"; {matched['same_number_share'].mean():.0%} are matched to the expert of their own number"
    return [f"{text}."]


def _saturation(part: pd.DataFrame, a: str, b: str) -> list[str]:
    share = figure(part["saturation"].mean(), ".0%", "an unknown share")
    return [
        (
            f"Router saturation: {a} makes {share} of the choices of {b} already "
            f"({figure(part['baseline'].mean(), '.0%', 'unknown')} for a random router)."
        )
    ]


def _saes(part: pd.DataFrame, a: str, b: str) -> list[str]:
    out = []
    for measure, same in part.groupby("measure", sort=False):
        if measure == "dead" or not same["difference"].notna().any():
            continue
        told = (
            f"{int(same['beyond'].sum())} of {len(same)} differences beyond chance"
            if same["p_value"].notna().any()
            else ("no intervals")
        )
        name = MEASURES[str(measure)]
        lead = f"SAEs, {name}, mean over layers: "
        if a == b:
            at = {int(w): v for side in "ab" for w, v in same.groupby(f"width_{side}")[f"value_{side}"].mean().items()}
            text = ", ".join(f"{figure(value, '.3g', 'unknown')} at width {width:,}" for width, value in sorted(at.items()))
            text += f", {course([value for _, value in sorted(at.items())])}"
        else:
            text = ", ".join(
                f"{figure(same[column].mean(), '.3g', 'unknown')} in {name}"
                for column, name in (("value_a", a), ("value_b", b))
            )
        out.append(f"{lead}{text} ({told}).")
    return out
