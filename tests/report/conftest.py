"""Figures that the tests of this folder share: drawing is what is slow about them."""

from __future__ import annotations

from typing import Any

import pytest
from support.plot_tables import TABLES, draw

from moe_probe.report.plots.drawing import figure_of


@pytest.fixture(scope="session")
def drawn() -> dict[str, Any]:
    """Every plot of a small table, laid out; not to be changed."""
    made = {name: draw(name) for name in TABLES}
    for item in made.values():
        figure_of(item).draw_without_rendering()
    return made
