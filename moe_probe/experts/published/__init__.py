"""Metrics of published work, each in its authors' definition."""

from __future__ import annotations

from moe_probe.experts.published.domains import (
    domain_specialisation,
    domain_table,
    esft_scores,
    risk_difference,
    smallest_set,
)
from moe_probe.experts.published.sequences import (
    consecutive_repetition,
    first_choices,
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
