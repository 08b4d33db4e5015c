"""What are experts about, if not topics? Rivals of topic, measured on held-out documents."""

from __future__ import annotations

from moe_probe.experts.explain.baseline import vocabulary_baseline
from moe_probe.experts.explain.bits import Explained, explain_routing
from moe_probe.experts.explain.classes import TOKEN_CLASSES, expert_token_classes, token_class
from moe_probe.experts.explain.habits import expert_positions, expert_tokens
from moe_probe.experts.explain.rivals import CONTEXTS, RIVALS, Rival
from moe_probe.experts.explain.vocabulary import ExpectedUsage, expected_usage, topic_beyond_vocabulary

__all__ = [
    "CONTEXTS",
    "RIVALS",
    "TOKEN_CLASSES",
    "ExpectedUsage",
    "Explained",
    "Rival",
    "expected_usage",
    "expert_positions",
    "expert_token_classes",
    "expert_tokens",
    "explain_routing",
    "token_class",
    "topic_beyond_vocabulary",
    "vocabulary_baseline",
]
