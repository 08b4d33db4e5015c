"""What explains routing, if not the topic: explanations that rival the topic, measured on held-out documents.

A trace comes in; result tables come out.

- `tokens` samples tokens with every factor that may explain their routing; `selections` reads what they chose, layer by layer.
- `bits` information of token, previous token, position and topic about routing, in bits; `stacking` the held-out
  predictions.
- `rivals` the contexts that rival the topic, under all their names.
- `vocabulary` the vocabulary test: usage compared with what contexts alone predict; `additive` the model that predicts it.
- `baseline` random routers: token ids dealt to experts at random, at the observed loads.
- `classes` kinds of token per expert: digits, punctuation, word starts, capitals; `lists` its top tokens and positions.
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
