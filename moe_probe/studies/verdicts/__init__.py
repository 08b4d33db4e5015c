"""Does a topic have an expert of its own? Verdicts by fixed rules, with the evidence of features and knock-outs.

In come the result tables of the experts (lifts, rivals, groups); out comes ``verdicts``, one row per topic.

- `rules` thresholds, grades and the caption; `conditions` checks them for the experts and groups of one topic.
- `judge` makes the table from usage; `reasons` says why a topic has its verdict; `power` what the corpus could have shown.
- `evidence` adds what matching says of features; `causes` what knock-outs say: confirmed or not; `sentence` the sentence of
  a verdict with all evidence.
- `update` renews the verdicts of a run; `stage` is the stage ``verdicts``.
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
from moe_probe.studies.verdicts.power import groups_needed, power_sentences
from moe_probe.studies.verdicts.reasons import ONLY_COUNTS
from moe_probe.studies.verdicts.rules import CLEAR, LIKELY, NEAR, NOTHING, UNTESTED, WEAK, Rules, grades
from moe_probe.studies.verdicts.sentence import words_open
from moe_probe.studies.verdicts.update import update_verdicts

__all__ = [
    "CLEAR",
    "CONFIRMED",
    "LIKELY",
    "NEAR",
    "NOTHING",
    "NOT_CONFIRMED",
    "NOT_TESTED",
    "ONLY_COUNTS",
    "UNCONFIRMABLE",
    "UNTESTED",
    "WEAK",
    "FeatureRules",
    "Rules",
    "complete_verdicts",
    "confirmation",
    "grades",
    "groups_needed",
    "power_sentences",
    "rise_text",
    "topic_verdicts",
    "update_verdicts",
    "words_open",
]
