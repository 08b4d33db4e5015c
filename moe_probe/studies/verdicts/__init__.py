"""Does a topic have an expert of its own? Verdicts by fixed rules, with the evidence of features and knock-outs.

In come the result tables of the experts (lifts, rivals, groups); out comes ``verdicts``, one row per topic. `rules` has the
thresholds and grades, `conditions` checks them for one topic, `reasons` puts the answer into sentences, and `judge` makes the
table. `evidence` adds what features (from matching) and knock-outs (`causes`) say, with a `sentence`; `update` does so for a run.
"""

from __future__ import annotations

from moe_probe.studies.verdicts.causes import (
    CONFIRMED,
    NOT_CONFIRMED,
    NOT_TESTED,
    UNCONFIRMABLE,
    confirmation,
    rise_text,
)
from moe_probe.studies.verdicts.evidence import FeatureRules, complete_verdicts
from moe_probe.studies.verdicts.judge import topic_verdicts
from moe_probe.studies.verdicts.rules import CLEAR, LIKELY, NEAR, NOTHING, UNTESTED, WEAK, Rules, grades
from moe_probe.studies.verdicts.update import update_verdicts

__all__ = [
    "CLEAR",
    "CONFIRMED",
    "LIKELY",
    "NEAR",
    "NOTHING",
    "NOT_CONFIRMED",
    "NOT_TESTED",
    "UNCONFIRMABLE",
    "UNTESTED",
    "WEAK",
    "FeatureRules",
    "Rules",
    "complete_verdicts",
    "confirmation",
    "grades",
    "rise_text",
    "topic_verdicts",
    "update_verdicts",
]
