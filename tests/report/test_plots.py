"""Plots: Axes come back, `ax=` is drawn into, panels are as many as asked for, labels are shown and not obeyed."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_probe.report import plots
from moe_probe.report.plots import maps as plots_maps
from moe_probe.report.plots import routing as plots_routing
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
    for module in (plots_routing, plots_maps, plots_tree, plots_units)
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
