"""The table of models in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from moe_probe.core.text import table_lines
from moe_probe.studies.models_table.answer import answer_sentences
from moe_probe.studies.models_table.cells import (
    Table,
    decoding_table,
    information_table,
    model_table,
    strongest_table,
    topics_table,
)
from moe_probe.studies.models_table.row import ModelRow

#: Width of a cell at most.
_CELL = 34


def models_lines(rows: Sequence[ModelRow]) -> list[str]:
    """Lay out the table of models for a terminal: what was measured, what came out, and the answer.

    Parameters
    ----------
    rows : sequence of ModelRow

    Returns
    -------
    list of str
    """
    parts = (
        ("Models", model_table),
        ("Bits of topic per selection, bias removed", information_table),
        ("Decoding of the topic, accuracy on held-out groups", decoding_table),
        ("Topics with an expert", topics_table),
        ("Strongest experts", strongest_table),
    )
    blocks = [line for heading, make in parts for line in (heading, *_lines(make(rows)), "")]
    return [*blocks, *answer_sentences(rows)]


def _lines(table: Table) -> list[str]:
    import pandas as pd

    head, body = table
    return table_lines(pd.DataFrame(body, columns=head, dtype=object), most=_CELL)
