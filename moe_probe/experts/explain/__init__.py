"""What explains routing, if not the topic: explanations that rival the topic, measured on held-out documents.

A trace comes in; result tables come out. `tokens` samples the tokens and iterates over layers, `rivals` lists the contexts
under all their names, `stacking` and `bits` measure factors in bits, `additive` and `vocabulary` predict usage from
contexts and positions, `baseline` deals words to experts at random, `classes` and `lists` describe single experts.
"""

from __future__ import annotations

from moe_probe.experts.explain.baseline import vocabulary_baseline
from moe_probe.experts.explain.bits import Explained, explain_routing
from moe_probe.experts.explain.classes import TOKEN_CLASSES, expert_token_classes, token_class
from moe_probe.experts.explain.lists import expert_positions, expert_tokens
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
