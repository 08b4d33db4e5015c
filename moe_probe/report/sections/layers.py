"""Sections on layers: how evenly experts are used, how much routing tells of topics, which experts work together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.report import svg
from moe_probe.report.content import Block, Picture, Section, Table, number, probability
from moe_probe.report.plots import routing as plots

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

#: Layers drawn one panel each; a model with more shows those where pairs differ most.
_PANELS = 9
_ROWS = 10
_SEEN = 50


def layers_section(results: Mapping[str, Result]) -> Section:
    """Show load, evenness and what routing tells of topics, layer by layer."""
    result = results["layers"]
    table = result.table
    low, high = table["effective_experts"].min(), table["effective_experts"].max()
    alpha = results["expert_topics"].params.get("alpha", 0.05) if "expert_topics" in results else 0.05
    passing = table[table["mi_topic_p"] <= alpha]
    finding = (
        f"Each layer uses as many experts as {number(float(low), 1)} to {number(float(high), 1)} equally loaded "
        f"ones; topics move the routing of {len(passing)} of {len(table)} layers."
    )
    blocks: list[Block] = []
    if "experts" in results:
        blocks.append(_load(results["experts"].table))
    blocks.append(
        Picture(
            "layers",
            plots.layer_profile(table),
            finding,
            "Left: number of equally used experts with the same entropy. Middle: what one selection tells of the topic, "
            "in bits, less what shuffled topics give. Right: how often the topic of an unseen document is guessed right "
            "from its shares of all experts of the layer.",
        )
    )
    columns = (
        "layer",
        "entropy_bits",
        "effective_experts",
        "load_cv",
        "mi_topic_bits",
        "mi_topic_null_bits",
        "mi_topic_p",
        "decode_accuracy",
        "decode_baseline",
    )
    heads = (
        "layer",
        "entropy (bits)",
        "effective experts",
        "load CV",
        "bits of topic",
        "same, shuffled",
        "p",
        "topic decoded",
        "same, shuffled",
    )
    rows = tuple(
        (str(int(r["layer"])), *(_cell(column, float(r[column])) for column in columns[1:])) for _, r in table.iterrows()
    )
    blocks.append(Table(heads, rows, heading="Layers"))
    return Section(
        title="How are experts used, layer by layer?",
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="Bits per selection are small where a document's many selections together still give its "
        "topic away; compare both columns. The load is of this corpus, not of the training data.",
    )


def _cell(column: str, value: float) -> str:
    return probability(value) if column == "mi_topic_p" else number(value, 4 if column.startswith("mi_") else 2)


def _load(experts: pd.DataFrame) -> Picture:
    relative = experts["load"] * experts.groupby("layer")["expert"].transform("size")
    top = experts.loc[relative.idxmax()]
    finding = (
        f"Layer {int(top['layer'])}, expert {int(top['expert'])} has the largest load: {number(float(relative.max()), 1)} "
        f"times an even share; {int((experts['load'] == 0).sum())} experts are never chosen."
    )
    return Picture(
        "load",
        plots.load_heatmap(experts),
        finding,
        f"{finding} Load: how often each expert (columns) of each layer (rows) is chosen, relative to an even share (1). A "
        "cross marks an expert never chosen. A large load on this corpus may be a small one on another.",
        inline=_load_inline(experts, relative) if len(experts) <= svg.MOST_MARKS else "",
    )


def _load_inline(experts: pd.DataFrame, relative: pd.Series) -> str:
    from matplotlib import colormaps

    layers = sorted(int(x) for x in experts["layer"].unique())
    width = int(experts["expert"].max()) + 1
    end = max(2.0, float(relative.max()))
    values = np.full((len(layers), width), np.nan)
    tips: list[list[str]] = [[""] * width for _ in layers]
    signs: list[list[str]] = [[""] * width for _ in layers]
    for row, share in zip(experts.to_dict("records"), relative, strict=True):
        i, j = layers.index(int(row["layer"])), int(row["expert"])
        values[i, j] = share / end
        tips[i][j] = (
            f"layer {layers[i]}, expert {j}: {row['load']:.1%} of selections, {share:.2f} times an even share{_by(row)}"
        )
        signs[i][j] = "" if row["load"] > 0 else "×"
    colours = colormaps["cividis"]
    drawing = svg.heat(
        values,
        tips,
        rows=layers,
        title="layers (rows) and experts (columns)",
        colours=colours,
        signs=signs,
        size=max(16, min(34, 900 // width)),
    )
    return svg.panels([drawing], further=svg.scale("0", "", f"{end:.1f}", "load over an even share", colours=colours))


def _by(row: Mapping[Any, Any]) -> str:
    return f"; explained by {row['explained_by']}" if row.get("explained_by") else ""


def coactivation_section(results: Mapping[str, Result]) -> Section:
    """Show pairs of experts that serve the same tokens."""
    result = results["coactivation"]
    table = result.table
    pairs = table[(table["expert_a"] < table["expert_b"]) & (table["tokens"] > 0)]
    title = "Which experts work together?"
    if pairs.empty:
        return Section(title=title, finding="Each token goes to one expert: there are no pairs.", how=result.caption)
    layers = sorted(int(x) for x in pairs["layer"].unique())
    spread = pairs.assign(log=np.log2(pairs["lift"])).groupby("layer")["log"].var()
    shown = layers if len(layers) <= _PANELS else sorted(int(x) for x in spread.nlargest(_PANELS).index)
    often = pairs[pairs["tokens"] >= _SEEN].sort_values("lift", ascending=False, kind="stable").head(_ROWS)
    finding = f"No pair of experts is chosen for the same token in {_SEEN} tokens or more."
    if len(often):
        top = often.iloc[0]
        finding = (
            f"Experts {int(top['expert_a'])} and {int(top['expert_b'])} of layer {int(top['layer'])} are chosen "
            f"together {number(float(top['lift']), 1)} times as often as independent choices would be."
        )
    blocks: list[Block] = [
        Picture(
            "coactivation",
            plots.coactivation_heatmap(table, layers=shown),
            finding,
            "For each pair of experts of a layer: tokens that chose both, over the number expected if the two were chosen "
            "independently (log2; 0 is chance; colours end at a factor of 8).",
        )
    ]
    if len(often):
        blocks.append(
            Table(
                ("layer", "experts", "tokens", "times expected"),
                tuple(
                    (
                        str(int(r["layer"])),
                        f"{int(r['expert_a'])} and {int(r['expert_b'])}",
                        number(int(r["tokens"])),
                        number(float(r["lift"])),
                    )
                    for _, r in often.iterrows()
                ),
                heading="Pairs furthest above chance",
                note=f"The {_ROWS} pairs furthest above chance among those seen in at least {_SEEN} tokens.",
            )
        )
    return Section(
        title=title,
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="A fixed number of slots makes pairs avoid each other a little by itself: below 0 is the "
        "rule, not a finding.",
    )
