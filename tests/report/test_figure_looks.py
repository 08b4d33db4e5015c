"""What figures say: units on axes, where colours end, what is pale, which expert; dark versions; files of equal bytes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from support.plot_tables import LAYERS, TABLES, draw

from moe_probe.report import plots
from moe_probe.report.plots import drawing, maps, panels, routing, saes, style, units
from moe_probe.report.plots.drawing import figure_files, figure_of

#: Plots whose colours stand for numbers.
COLOURED = (
    "load_heatmap",
    "token_class_heatmap",
    "ablation_matrix",
    "topic_heatmap",
    "topic_panels",
    "coactivation_heatmap",
)


def words(figure: Figure) -> str:
    return "\n".join(str(t.get_text()) for t in figure.findobj(matplotlib.text.Text) if t.get_visible())


def cells_of(axes: Any) -> Any:
    """The image of the cells, which lies over that of the page."""
    return axes.images[-1]


@pytest.mark.parametrize("name", sorted(TABLES))
def test_axes_have_names(name: str, drawn: dict[str, Any]) -> None:
    """Of every panel, or of all panels together; the scale of topics is the only axis of words alone."""
    figure = figure_of(drawn[name])
    for axes in np.atleast_1d(drawn[name]).flat:
        assert axes.get_xlabel() or figure.get_supxlabel(), name
    first = np.atleast_1d(drawn[name]).flat[0]
    words_alone = name in ("verdict_lifts", "carriers", "purity_bars", "topic_heatmap")
    assert words_alone or first.get_ylabel() or figure.get_supylabel(), name


@pytest.mark.parametrize("name", COLOURED)
def test_colours_say_where_they_end(name: str, drawn: dict[str, Any]) -> None:
    image = cells_of(np.atleast_1d(drawn[name]).flat[0])
    low, high = image.get_clim()
    shown = [float(n) for n in re.findall(r"colours (?:end at ±|from 0 to )([0-9.]+)", words(figure_of(drawn[name])))]
    assert shown == [pytest.approx(high, rel=0.05)] and low in (0, pytest.approx(-high))


@pytest.mark.parametrize(
    ("name", "panel", "column", "value"),
    [("topic_heatmap", 0, "layer", LAYERS[0]), ("topic_panels", 0, "topic", "art"), ("topic_panels", 2, "topic", "law")],
)
def test_cells_that_are_not_significant_are_pale(
    name: str, panel: int, column: str, value: Any, drawn: dict[str, Any]
) -> None:
    table = TABLES[name]
    part = table[table[column] == value].sort_values(["topic", "layer", "expert"])
    opacity = cells_of(drawn[name].flat[panel]).get_alpha()
    expected = np.where(part["significant"], 1.0, style.PALE)
    assert np.broadcast_to(1.0 if opacity is None else opacity.ravel(), len(part)).tolist() == expected.tolist()
    assert "pale: not significant" in words(figure_of(drawn[name]))
    untested = table.assign(q_value=np.nan, significant=False)
    assert not any(
        panel.cells["pale"].any() for panel in panels.lift_panels(untested, panel="layer", row="topic", shown=LAYERS)
    )
    assert "none could be tested" in panels.lift_scale(untested).note


def test_kinds_of_tokens_name_the_expert(drawn: dict[str, Any]) -> None:
    """The strongest that is significant stands before a stronger one that is not; where none is, the cell is pale."""
    axes = drawn["token_class_heatmap"]
    numbers = {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in axes.texts}
    assert numbers == {(0, 0): "3", (1, 1): "1"}
    assert cells_of(axes).get_alpha().tolist() == [[style.PALE, 0], [0, 1]]


def test_pairs_have_no_diagonal(drawn: dict[str, Any]) -> None:
    image = cells_of(drawn["coactivation_heatmap"][0])
    assert (np.diag(image.get_alpha()) == 0).all() and (image.get_alpha().sum() == 4 * 3)
    assert to_hex(drawn["coactivation_heatmap"][0].get_facecolor()) == style.EMPTY
    assert "grey: no pair" in words(figure_of(drawn["coactivation_heatmap"]))


def test_saes_of_one_l0_lie_side_by_side(drawn: dict[str, Any]) -> None:
    """L0 16 for both: against L0 they would lie above each other; SAEs of several L0 are drawn against it."""
    left = drawn["sae_pareto"][0]
    assert left.get_xlabel() == "width (latents)" and "L0 of all: 16" in left.get_title()
    assert sorted(float(line.get_xdata()[0]) for line in left.lines if line.get_marker() in "os") == [64, 256]
    several = TABLES["sae_pareto"].assign(l0=[16.0, 32.0])
    assert saes.sae_pareto(several)[0].get_xlabel() == "active latents per token (L0)"


def test_no_change_of_the_loss_is_cut_unsaid(drawn: dict[str, Any]) -> None:
    """Colours reach the largest change; where one is far from all others, its number is in its cell, and the figure says so."""
    assert cells_of(drawn["ablation_matrix"]).get_clim() == (-0.2, 0.2)
    n = 60
    table = pd.DataFrame(
        {
            "unit": [f"layer 2 expert {i}" for i in range(n)],
            "topic": "art",
            "delta_nats": [3.0, *np.linspace(0.01, 0.02, n - 1)],
            "held_to": True,
            "confirmed": False,
        }
    )
    table = table.assign(ci_low=table["delta_nats"] - 0.015, ci_high=table["delta_nats"] + 0.015)
    axes = units.ablation_matrix(table)
    assert cells_of(axes).get_clim()[1] < 0.021 and [t.get_text() for t in axes.texts] == ["+3"]
    assert "1 cell outside, with number" in axes.get_xlabel().replace("\n", " ")
    assert (cells_of(axes).get_alpha().ravel() == np.where(table["ci_low"] <= 0, style.PALE, 1)).all()


@pytest.mark.parametrize(("layers", "experts", "topics"), [(6, 16, 12), (24, 32, 12), (60, 256, 57)])
def test_cells_of_large_models_can_be_seen(layers: int, experts: int, topics: int) -> None:
    """Cells are 2.5 points or more, so that 300 dpi give each ten pixels; signs fit into them; the figure fits a screen."""
    rows = pd.MultiIndex.from_product([range(layers), range(experts), [f"t{i}" for i in range(topics)]])
    table = rows.to_frame(index=False, name=["layer", "expert", "topic"])
    table["log2_lift"] = np.random.default_rng(0).normal(size=len(table))
    size = maps.panel_size(table)
    width, height = 72 * (9.4 / size.columns - 0.2) / experts, 72 * size.height / layers
    assert min(width, height) >= 2.5 and size.sign <= min(width, height)
    assert (size.sign == 0) == (experts == 256)
    shown = maps.shown_topics(table)
    assert len(shown) == min(topics, 12 if experts == 256 else 24)
    assert -(-len(shown) // size.columns) * (size.height + 0.4) <= 33
    assert shown == sorted(table.groupby("topic")["log2_lift"].var().nlargest(len(shown)).index)


def luminance(colour: Any) -> float:
    parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
    return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))


def contrast(a: Any, b: Any) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["load_heatmap", "ablation_matrix", "carriers", "verdict_lifts", "sae_pareto"])
def test_dark_figures_can_be_read(name: str) -> None:
    figure = style.darken(figure_of(draw(name)))
    figure.draw_without_rendering()
    assert to_hex(figure.get_facecolor()) == style.DARK_PAGE
    on_cells = {id(text) for axes in figure.axes for text in axes.texts}
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text().strip() and id(text) not in on_cells:
            assert contrast(text.get_color(), style.DARK_PAGE) > 4.5, text
    for axes in figure.axes:
        for line in axes.get_xticklines():
            assert contrast(line.get_color(), style.DARK_PAGE) > 4.5


def test_colours_of_labels_can_be_told_from_a_dark_page() -> None:
    for colour in panels.PALETTE:
        assert contrast(style.dark_colour(colour), style.DARK_PAGE) > 2.5, colour
    assert to_hex(style.dark_colour("white")) == style.DARK_PAGE and to_hex(style.dark_colour("black")) == style.DARK_INK


@pytest.mark.parametrize("colours", [style.DIVERGING, style.AMOUNTS])
def test_signs_can_be_read_on_every_cell(colours: Any) -> None:
    scale = panels.ColourScale(colours, -1, 1, "", "")
    for value, (light, dark) in zip(np.linspace(-1, 1, 41), panels.ink_of_cells(np.linspace(-1, 1, 41), scale), strict=True):
        assert contrast(light, colours((value + 1) / 2)) > 3.5
        assert contrast(dark, style.dark_map(colours)((value + 1) / 2)) > 3.5


def test_files_are_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG of 300 dpi, SVG and PDF with letters as letters, without a date; what a user saves has the same bytes."""
    from PIL import Image

    monkeypatch.setattr(drawing, "FILE_DPI", 300)
    first, second = (figure_files(draw("load_heatmap")) for _ in range(2))
    assert first == second and set(first.files) == {"png", "svg", "pdf"}
    image, page, dark = (Image.open(io.BytesIO(data)) for data in (first.files["png"], first.light, first.dark))
    assert image.width == pytest.approx(page.width * 300 / 110, rel=0.01) and page.size == dark.size
    assert page.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert dark.convert("RGB").getpixel((1, 1)) == tuple(round(255 * x) for x in to_rgb(style.DARK_PAGE))
    svg, pdf = first.files["svg"].decode(), first.files["pdf"]
    assert ">load / even share</text>" in svg and "dc:date" not in svg
    assert b"/FontFile2" in pdf and b"CreationDate" not in pdf and b"/Type3" not in pdf
    saved = [io.BytesIO() for _ in range(2)]
    for file in saved:
        figure_of(draw("load_heatmap")).savefig(file, format="svg")
    assert saved[0].getvalue() == saved[1].getvalue() and b">load / even share" in saved[0].getvalue()


def test_layers_of_pairs_are_chosen_and_counted() -> None:
    rng = np.random.default_rng(0)
    table = pd.concat(
        [
            TABLES["coactivation_heatmap"].query("layer == 2").assign(layer=i, lift=2.0 ** rng.normal(0, 1 + i, 6))
            for i in range(12)
        ]
    )
    shown = routing.pair_layers(table)
    assert len(shown) == 9 and shown == sorted(shown) and 11 in shown and 0 not in shown


def test_the_page_of_figures_has_all_of_them_and_stays_small() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page, files = (docs / "figures.md").read_text(encoding="utf-8"), sorted((docs / "figures").iterdir())
    for name in dir(plots.RunPlots({})):
        assert f"`run.plot.{name}()`" in page and f"](figures/{name}.png)" in page, name
    assert {f.name for f in files} == set(re.findall(r"\]\(figures/(\w+\.png)\)", page))
    sizes = [f.stat().st_size for f in files]
    assert max(sizes) <= 60_000 and sum(sizes) <= 600_000
