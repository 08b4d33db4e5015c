"""The table of models: one small record per model and corpus; which models have experts of topics, and how sure that is.

An analysed run goes in, a record comes out: a JSON file with numbers of four significant digits, sorted keys, no time and no
path. The table, its page and its figure are made from the records alone, so equal records make equal bytes.

- `row` the record; `measure` makes it from a run; `store` reads and writes folders of records, those of the package included.
- `answer` says for which models the finding of the Mixtral paper holds; `cells` the values of the table as text;
  `page` the page in Markdown; `terminal` the table in a terminal.
"""

from __future__ import annotations

from moe_probe.studies.models_table.answer import Finding, answer_sentences, finding
from moe_probe.studies.models_table.measure import measure_row
from moe_probe.studies.models_table.page import models_page
from moe_probe.studies.models_table.row import ModelRow, TopicRow
from moe_probe.studies.models_table.store import SHIPPED, add_row, read_rows, shipped_rows
from moe_probe.studies.models_table.terminal import models_lines

__all__ = [
    "SHIPPED",
    "Finding",
    "ModelRow",
    "TopicRow",
    "add_row",
    "answer_sentences",
    "finding",
    "measure_row",
    "models_lines",
    "models_page",
    "read_rows",
    "shipped_rows",
]
