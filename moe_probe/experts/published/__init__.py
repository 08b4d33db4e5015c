"""Metrics of published work, each as its authors define it.

A trace (or counts per document) comes in; result tables come out. `domains` and `contrast` compare domains and sets of
prompts, `sequences` neighbouring tokens and checkpoints, `vocabulary` token ids; `choices` reads first choices and draws
samples; `summary` puts the metrics in one table.
"""

from __future__ import annotations

from moe_probe.experts.published.choices import first_choices
from moe_probe.experts.published.contrast import risk_difference
from moe_probe.experts.published.domains import domain_specialisation, domain_table, esft_scores, smallest_set
from moe_probe.experts.published.sequences import (
    consecutive_repetition,
    random_repetition,
    router_saturation,
    saliency,
)
from moe_probe.experts.published.summary import published_metrics
from moe_probe.experts.published.vocabulary import vocabulary_experts, vocabulary_specialisation

__all__ = [
    "consecutive_repetition",
    "domain_specialisation",
    "domain_table",
    "esft_scores",
    "first_choices",
    "published_metrics",
    "random_repetition",
    "risk_difference",
    "router_saturation",
    "saliency",
    "smallest_set",
    "vocabulary_experts",
    "vocabulary_specialisation",
]
