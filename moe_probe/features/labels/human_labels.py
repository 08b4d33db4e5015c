"""A person's labels, which replace any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import track
from moe_probe.core.text import some_of
from moe_probe.core.textfiles import read_csv
from moe_probe.features.describe import GOOD_SCORE
from moe_probe.features.firing import fire
from moe_probe.features.run_saes import RunSaes
from moe_probe.features.search.occurrences import occurrences

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result
    from moe_probe.features.firing import Firings
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.recording.trace import Trace

_NEEDED = ("sae", "feature", "label")


def read_labels(path: Path) -> pd.DataFrame:
    """Read ``sae, feature, label`` and optionally ``pattern`` from a CSV file.

    Raises
    ------
    MoeProbeError
        When the file cannot be read, lacks a column, or holds a feature twice.
    """
    import pandas as pd

    names, rows = read_csv(path)
    table = pd.DataFrame(rows, columns=pd.Index(names), dtype=str)
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise MoeProbeError(
            f"{path} has no column {', '.join(missing)}",
            f"it has {some_of(table.columns, 12)}",
            "columns sae (such as layer_02/width_01024), feature and label",
        )
    wrong = table[~table["feature"].str.strip().str.fullmatch("[0-9]{1,18}")]
    if len(wrong):
        raise MoeProbeError(
            f"{path} has features that are not numbers",
            f"'{wrong.iloc[0]['feature']}' in the column 'feature'",
            "whole numbers from 0",
        )
    table["feature"] = table["feature"].str.strip().astype(np.int64)
    twice = table[table.duplicated(["sae", "feature"])]
    if len(twice):
        raise MoeProbeError(
            f"{path} labels feature {twice.iloc[0]['feature']} of {twice.iloc[0]['sae']} twice",
            "only one label can apply",
            "one row per feature",
        )
    return table


def apply_labels(run: RunDirectory, features: Result, path: Path) -> Result:
    """Replace labels by a person's; score those that come with a pattern.

    A pattern is a regular expression for the text on which the feature is claimed to fire; it is scored on held-out tokens
    as rules are. A label without one is unscored: its score is NaN.

    Parameters
    ----------
    run : RunDirectory
    features : Result
        ``features`` of the run.
    path : Path
        CSV file, see `read_labels`.

    Returns
    -------
    Result
        ``features`` with these labels.

    Raises
    ------
    MoeProbeError
        As `read_labels`, and when a feature is not there or a pattern is not a regular expression.
    """
    given = read_labels(path)
    table = features.table.copy()
    row_of = {key: i for i, key in enumerate(zip(table["sae"], table["feature"], strict=True))}
    for sae, feature in zip(given["sae"], given["feature"], strict=True):
        if (sae, feature) not in row_of:
            raise MoeProbeError(
                f"{path} names feature {feature} of '{sae}'",
                "there is none in this run",
                f"one of {', '.join(sorted(table['sae'].unique())[:4])} ...",
            )
    scored = given[given["pattern"] != ""] if "pattern" in given.columns else given.iloc[:0]
    opened = track(RunSaes(run), "read SAEs", unit="SAEs")
    firings = {item.name: fire(item.sae, item.held_out) for item in opened if item.name in set(scored["sae"])}
    for _, row in given.iterrows():
        at = table.index[row_of[row["sae"], row["feature"]]]
        table.loc[at, ["label", "label_rule", "label_source"]] = [row["label"], "a person", "human"]
        recall = false_alarms = precision = np.nan
        if pattern := row.get("pattern", ""):
            recall, false_alarms, precision = _tested(run, firings[row["sae"]], int(row["feature"]), pattern)
        score = (recall + 1 - false_alarms) / 2
        columns = ["label_score", "label_recall", "label_precision", "label_hard_score"]
        table.loc[at, columns] = [score, recall, precision, np.nan]
        table.loc[at, "good"] = bool(score >= GOOD_SCORE)
    return replace(features, table=table, params=features.params | {"human_labels": len(given)})


def _tested(trace: Trace, firings: Firings, feature: int, pattern: str) -> tuple[float, float, float]:
    """Recall, false alarms and precision of a pattern on held-out tokens."""
    predicted = np.isin(firings.rows, occurrences(trace, pattern, regex=True))
    fires = np.zeros(len(firings.rows), dtype=bool)
    fires[firings.matrix[:, [feature]].tocoo().coords[0]] = True
    both = int((predicted & fires).sum())
    return (
        both / fires.sum() if fires.any() else np.nan,
        float((predicted & ~fires).sum() / max(1, (~fires).sum())),
        both / predicted.sum() if predicted.any() else np.nan,
    )
