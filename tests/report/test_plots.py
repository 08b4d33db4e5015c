"""Plots: Axes come back, `ax=` is drawn into, panels are as many as asked for, labels are shown and not obeyed."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_probe.core.results import Result
from moe_probe.report import plots
from moe_probe.report.plots import maps as plots_maps
from moe_probe.report.plots import routing as plots_routing
from moe_probe.report.plots import summary as plots_summary
from moe_probe.report.plots import tree as plots_tree
from moe_probe.report.plots import units as plots_units
from moe_probe.report.plots.drawing import figure_of, new_figure

EVIL = "evil\x1b[31m"
LAYERS, EXPERTS, TOPICS = (2, 5), range(4), ("art", EVIL, "law")


def grid(**columns: object) -> pd.DataFrame:
    """Make a table of all layers, experts and topics, with further columns."""
    table = pd.DataFrame(itertools.product(LAYERS, EXPERTS, TOPICS), columns=["layer", "expert", "topic"])
    return table.assign(**columns)


def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame(itertools.combinations(EXPERTS, 2), columns=["expert_a", "expert_b"])
    factors = pd.DataFrame(
        itertools.product(LAYERS, ("token first", "topic first"), (("token", 0.3), ("topic", -0.1))),
        columns=["layer", "order", "both"],
    )
    classes = pd.DataFrame(
        {"layer": [2, 5], "token_class": ["digits", "names"], "log2_lift": [1.0, 2.0], "significant": [True, True]}
    )
    load = pd.DataFrame(itertools.product(LAYERS, EXPERTS), columns=["layer", "expert"]).assign(
        load=[0, 0.5, 0.25, 0.25] * 2
    )
    half = np.full(2, 0.5)
    quality = pd.DataFrame(
        {
            "layer": [2, 5],
            "width": [64, 256],
            "l0": [16.0, 16.0],
            "fvu": [0.2, 0.1],
            "ce_recovered": half,
            "ce_recovered_low": half - 0.1,
            "ce_recovered_high": half + 0.1,
        }
    )
    carriers = pd.DataFrame(itertools.product(plots_units.KINDS, TOPICS), columns=["kind", "topic"])
    for name in ("document", "token"):
        carriers = carriers.assign(**{f"auroc_{name}": 0.8, f"{name}_low": 0.7, f"{name}_high": 0.9})
    ablation = (
        grid()[["topic"]]
        .drop_duplicates()
        .assign(
            unit="layer 2, expert 1",
            delta_nats=[0.1, -0.2, 0.0],
            held_to=[True, False, False],
            confirmed=[True, False, False],
        )
    )
    return {
        "load_heatmap": load,
        "token_class_heatmap": classes,
        "ablation_matrix": ablation,
        "sae_pareto": quality,
        "topic_heatmap": grid(log2_lift=rng.normal(size=24), significant=True, replicated=[True, False] * 12),
        "coactivation_heatmap": pd.concat([pairs.assign(layer=layer, lift=2.0) for layer in LAYERS]),
        "layer_profile": pd.DataFrame(
            {
                "layer": LAYERS,
                **{
                    name: [0.1, 0.2]
                    for name in (
                        "effective_experts",
                        "mi_topic_bits",
                        "mi_topic_null_bits",
                        "decode_accuracy",
                        "decode_baseline",
                    )
                },
            }
        ),
        "explained_bars": factors.assign(
            factor=[b[0] for b in factors["both"]], bits=[b[1] for b in factors["both"]], step=0
        ),
        "maps": pd.DataFrame({"unit": ["expert", "document"], "x": [0.0, 1.0], "y": [0.0, 1.0], "label": [EVIL, "art"]}),
        "prediction_bars": pd.DataFrame(
            {
                "layer": LAYERS,
                "width": [0, 0],
                "inputs": ["topic", "topic"],
                "recall": half,
                "recall_low": half,
                "recall_high": half,
            }
        ),
        "carriers": carriers,
        "topic_panels": grid(log2_lift=rng.normal(size=24), significant=True, replicated=[True, False] * 12),
        "verdict_lifts": pd.DataFrame(
            {
                "topic": TOPICS,
                "verdict": ["expert", "none", "none"],
                "grade": ["clear", "weak", "untested"],
                "log2_lift": [1.5, 0.4, np.nan],
                "ci_low": [1.2, 0.3, np.nan],
                "ci_high": [1.8, 0.5, np.nan],
            }
        ),
        "purity_bars": pd.DataFrame(
            {
                "layer": [5, 5],
                "parent_width": 16,
                "child_width": 64,
                "nodes": 3,
                "purity": 0.2,
                "tree": ["this run", "parents of another seed"],
                "expected": 0.1,
                "ceiling": 0.3,
            }
        ),
    }


TABLES = tables()
PUBLIC = {
    name: item
    for module in (plots_routing, plots_maps, plots_summary, plots_tree, plots_units)
    for name, item in inspect.getmembers(module, inspect.isfunction)
    if item.__module__ == module.__name__ and not name.startswith("_")
}
FUNCTIONS = {name: PUBLIC[name] for name in TABLES}
ONE_PANEL = [name for name, item in FUNCTIONS.items() if "ax" in inspect.signature(item).parameters]


def draw(name: str, **options: object) -> Axes | np.ndarray:
    if name == "topic_panels":
        options["topics"] = TOPICS
    if name in ("topic_heatmap", "coactivation_heatmap"):
        options["layers"] = LAYERS
    return FUNCTIONS[name](TABLES[name], **options)


def test_the_face_has_every_plot_and_loads_no_matplotlib() -> None:
    assert {name for name in plots.__all__ if getattr(plots, name) is PUBLIC.get(name)} == set(TABLES) - {"maps"}
    with pytest.raises(AttributeError, match="no attribute 'heatmap'"):
        plots.heatmap  # noqa: B018
    code = "import sys; from moe_probe.report import plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_plot_gives_a_figure() -> None:
    assert [name for name, item in PUBLIC.items() if "Figure" in str(inspect.signature(item).return_annotation)] == []
    assert len(ONE_PANEL) >= 3


@pytest.mark.parametrize("name", sorted(TABLES))
def test_plots_give_axes(name: str) -> None:
    drawn = draw(name)
    panels = list(drawn.flat) if isinstance(drawn, np.ndarray) else [drawn]
    assert all(isinstance(ax, Axes) and ax.has_data() for ax in panels)
    assert (len(panels) == 1) == (name in ONE_PANEL) and len({id(ax.figure) for ax in panels}) == 1
    figure = figure_of(drawn)
    figure.canvas.draw()
    texts = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
    assert not any("\x1b" in text for text in texts)


@pytest.mark.parametrize("name", ONE_PANEL)
def test_ax_is_drawn_into(name: str) -> None:
    figure = Figure()
    left, right = (figure.add_subplot(1, 2, i) for i in (1, 2))
    assert draw(name, ax=right) is right and right.has_data() and not left.has_data()
    figure.canvas.draw()


def test_figures_are_shown_where_pyplot_is_interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    with matplotlib.rc_context({"interactive": False}):
        new_figure(1, 1)
    assert plt.get_fignums() == before
    with matplotlib.rc_context({"interactive": True, "backend": "agg"}):
        made = new_figure(1, 1)
    assert made.number in plt.get_fignums()
    plt.close(made)


def test_the_picture_of_the_answer_says_what_the_table_says() -> None:
    """Largest lift on top, the threshold where it was set, an interval from bound to bound, no dot where nothing was tested."""
    axes = plots_summary.verdict_lifts(TABLES["verdict_lifts"], min_log2_lift=0.9)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["law", "evil\\x1b[31m", "art"]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [np.asarray(line.get_xdata()).tolist() for line in dashed] == [[0.9, 0.9]]
    drawn: list[Any] = [*axes.collections]
    bars = [segment for part in drawn for segment in part.get_segments()]
    assert sorted((float(b[0, 0]), float(b[1, 0]), float(b[0, 1])) for b in bars) == [(0.3, 0.5, 1.0), (1.2, 1.8, 2.0)]
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend == ["has an expert (1)", "real but too small (1)", "not tested (1)"]
    colours = {plots_summary.ANSWERS[kind][0] for kind in ("expert", "weak")}
    assert {matplotlib.colors.to_hex(part.get_color()[0]) for part in drawn} == colours


def test_figures_of_a_run_have_names() -> None:
    """Each is a Figure of its result, the missing ones are said to be missing, and a page of them lists what can be drawn."""
    made = {
        "verdicts": ("topics", "verdict_lifts"),
        "experts": ("load", "load_heatmap"),
        "expert_topics": ("lifts", "topic_heatmap"),
        "coactivation": ("pairs", "coactivation_heatmap"),
        "layers": ("layers", "layer_profile"),
        "explained": ("explained", "explained_bars"),
        "expert_token_classes": ("token_kinds", "token_class_heatmap"),
        "maps": ("maps", "maps"),
        "sae_quality": ("saes", "sae_pareto"),
        "carriers": ("carriers", "carriers"),
        "routing_predicted": ("predicted", "prediction_bars"),
        "ablation": ("causes", "ablation_matrix"),
        "tree_subjects": ("tree", "purity_bars"),
    }
    every = {name: Result(name, TABLES[table]) for name, (_, table) in made.items()}
    plot = plots.RunPlots(every)
    names = [name for name, _ in made.values()]
    for name in names:
        assert isinstance(getattr(plot, name)(), Figure)
    assert sorted(repr(plot).removeprefix("RunPlots(").removesuffix(")").split(", ")) == sorted(names)
    assert set(names) == {n for n, item in vars(plots.RunPlots).items() if not n.startswith("_") and callable(item)}
    assert all(f"run.plot.{name}()" in plot._repr_html_() for name in names)
    assert repr(plots.RunPlots({})) == "RunPlots(no results yet)"
    ax = new_figure(4, 3).subplots()
    assert plot.topics(ax=ax) is ax.figure
