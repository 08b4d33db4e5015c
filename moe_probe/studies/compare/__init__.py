"""Comparisons of runs that differ in model, checkpoint, corpus, label, seed or SAE width.

In come run directories, or `ComparedRun` objects (a run under one label); out comes a `Comparison`: tables of differences with
intervals. `opening` opens runs, `pairing` finds the documents that two runs share and resamples them, and `comparison` asks all
questions: `facts` (what differs in the settings), `verdicts`, `topics` (lifts), `layers`, `labels`, `saes`, and `alignment`
(which expert is which). `differences` has the intervals, `summary` the sentences.
"""

from __future__ import annotations

from moe_probe.studies.compare.alignment import Aligned, align_experts
from moe_probe.studies.compare.compared_run import ComparedRun, SharedDocuments, shared_documents
from moe_probe.studies.compare.comparison import TABLES, Comparison, compare_opened_runs
from moe_probe.studies.compare.differences import ComparisonSettings, Difference, Estimate, from_draws
from moe_probe.studies.compare.labels import compare_labels
from moe_probe.studies.compare.layers import compare_layers
from moe_probe.studies.compare.opening import compare_runs, open_compared_run, open_compared_runs
from moe_probe.studies.compare.pairing import Pairing, pair_runs
from moe_probe.studies.compare.saes import sae_differences, sae_values
from moe_probe.studies.compare.summary import MEASURES, in_words
from moe_probe.studies.compare.topics import compare_topics
from moe_probe.studies.compare.verdicts import compare_verdicts, verdict_changes

__all__ = [
    "MEASURES",
    "TABLES",
    "Aligned",
    "ComparedRun",
    "Comparison",
    "ComparisonSettings",
    "Difference",
    "Estimate",
    "Pairing",
    "SharedDocuments",
    "align_experts",
    "compare_labels",
    "compare_layers",
    "compare_opened_runs",
    "compare_runs",
    "compare_topics",
    "compare_verdicts",
    "from_draws",
    "in_words",
    "open_compared_run",
    "open_compared_runs",
    "pair_runs",
    "sae_differences",
    "sae_values",
    "shared_documents",
    "verdict_changes",
]
