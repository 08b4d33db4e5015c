"""The same questions over runs that differ in model, checkpoint, corpus, label, seed or SAE width."""

from __future__ import annotations

from moe_probe.studies.compare.alignment import Aligned, align_experts
from moe_probe.studies.compare.effects import compare_layers, compare_topics
from moe_probe.studies.compare.facts import compare_runs_table
from moe_probe.studies.compare.labels import compare_labels
from moe_probe.studies.compare.pairing import Pairing, pair_sides
from moe_probe.studies.compare.saes import sae_differences, sae_values
from moe_probe.studies.compare.sides import Shared, Side, shared_documents
from moe_probe.studies.compare.summary import in_words
from moe_probe.studies.compare.verdicts import compare_verdicts, verdict_changes
from moe_probe.studies.compare.whole import TABLES, Comparison, compare_sides

__all__ = [
    "TABLES",
    "Aligned",
    "Comparison",
    "Pairing",
    "Shared",
    "Side",
    "align_experts",
    "compare_labels",
    "compare_layers",
    "compare_runs_table",
    "compare_sides",
    "compare_topics",
    "compare_verdicts",
    "in_words",
    "pair_sides",
    "sae_differences",
    "sae_values",
    "shared_documents",
    "verdict_changes",
]
