"""A report of numbers that could not be measured shows dashes and words, never "nan"."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from support.faces import markdown_of

from moe_probe.report import write_report
from moe_probe.testing import planted_results, planted_trace

#: Columns that a small corpus leaves without a number.
UNKNOWN = re.compile(
    r"_low$|_high$|^ci_|^p_|^q_|_q$|familywise|replication|auroc|_score$|^label_[pr]|^ce_|control|beyond|"
    r"redundancy|seconds|decode_|precision|recall|detectable|gate|stability|^lift$|random|cosine"
)


def test_no_nan_in_a_report_of_a_corpus_too_small_for_its_numbers(tmp_path: Path) -> None:
    trace = planted_trace(
        tmp_path / "trace", planted=(), topics=3, documents_per_topic=6, tokens=30, n_layers=2, num_experts=6
    )
    emptied = 0
    for result in planted_results(trace, tmp_path / "results"):
        table = result.table.copy()
        for column in table.columns:
            if table[column].dtype.kind == "f" and UNKNOWN.search(column):
                table[column], emptied = np.nan, emptied + 1
        replace(result, table=table).save(tmp_path / "results")
    assert emptied > 40
    write_report(tmp_path)
    text = markdown_of(tmp_path)
    assert not re.findall(r".{0,60}\b(?:nan|<NA>|inf)\b.{0,30}", text)
