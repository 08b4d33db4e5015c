"""Metrics of published work, each as its authors define it.

A trace (or counts per document) comes in; result tables come out.

- `domains` domain specialisation, and the smallest set of experts that handles a domain (ESFT).
- `contrast` differences of activation rates between two sets of prompts (risk difference).
- `sequences` repetition between neighbouring tokens, router saturation between checkpoints, saliency (norms of expert
  outputs).
- `vocabulary` how far a token id alone determines the expert; `summary` all metrics in one table, one row per layer and
  metric.
- `choices` first choices of tokens and samples of documents, which these metrics count.
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
