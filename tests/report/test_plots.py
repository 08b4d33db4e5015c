"""Plots: Axes come back, `ax=` is drawn into, panels are as many as asked for, labels are shown and not obeyed."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.plot_tables import ONE_PANEL, PUBLIC, TABLES, draw

from moe_probe.core.results import Result
from moe_probe.report import plots
from moe_probe.report.plots import summary as plots_summary
from moe_probe.report.plots.drawing import figure_of, new_figure, safe


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
def test_plots_give_axes(name: str, drawn: dict[str, Any]) -> None:
    panels = list(drawn[name].flat) if isinstance(drawn[name], np.ndarray) else [drawn[name]]
    assert all(isinstance(ax, Axes) and ax.has_data() for ax in panels)
    assert (len(panels) == 1) == (name in ONE_PANEL) and len({id(ax.figure) for ax in panels}) == 1
    texts = [t.get_text() for t in figure_of(drawn[name]).findobj(matplotlib.text.Text)]
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


@pytest.mark.parametrize("formulas", [True, False])
def test_dollar_signs_are_dollar_signs(formulas: bool) -> None:
    with matplotlib.rc_context({"text.parse_math": formulas}):
        figure = new_figure(2, 2)
        figure.text(0, 0, safe("US$ and $x$"))
        file = io.BytesIO()
        figure.savefig(file, format="svg")
    assert ">US$ and $x$<" in file.getvalue().decode()


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


#: Method of `run.plot`, by its result and the plot that it draws.
METHODS = {
    "topics": ("verdicts", "verdict_lifts"),
    "load": ("experts", "load_heatmap"),
    "lifts": ("expert_topics", "topic_heatmap"),
    "topic_maps": ("expert_topics", "topic_panels"),
    "pairs": ("coactivation", "coactivation_heatmap"),
    "layers": ("layers", "layer_profile"),
    "explained": ("explained", "explained_bars"),
    "token_kinds": ("expert_token_classes", "token_class_heatmap"),
    "maps": ("maps", "maps"),
    "saes": ("sae_quality", "sae_pareto"),
    "carriers": ("carriers", "carriers"),
    "predicted": ("routing_predicted", "prediction_bars"),
    "causes": ("ablation", "ablation_matrix"),
    "tree": ("tree_subjects", "purity_bars"),
}


def test_figures_of_a_run_have_names() -> None:
    """Each is a Figure of its result, the missing ones are said to be missing, and a page of them lists what can be drawn."""
    plot = plots.RunPlots({result: Result(result, TABLES[table]) for result, table in METHODS.values()})
    for name in METHODS:
        assert isinstance(getattr(plot, name)(dark=name in ("topics", "causes", "load")), Figure)
    assert sorted(repr(plot).removeprefix("RunPlots(").removesuffix(")").split(", ")) == sorted(METHODS)
    assert sorted(METHODS) == dir(plot) == sorted(n for n, f in vars(plots.RunPlots).items() if n[0] != "_" and callable(f))
    for name in METHODS:
        text = getattr(plot, name).__doc__
        assert f">>> run.plot.{name}(" in text and "dark : bool" in text
    assert all(f"run.plot.{name}()" in plot._repr_html_() for name in METHODS)
    assert repr(plots.RunPlots({})) == "RunPlots(no results yet)"
    ax = new_figure(4, 3).subplots()
    assert plot.topics(ax=ax) is ax.figure
