"""Enumerations and numbers in sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moe_probe.core.results import Result
from moe_probe.core.stats import GroupUsage
from moe_probe.core.text import figure, is_missing, some_of
from moe_probe.experts.topic_tests import _size_warnings
from moe_probe.studies.ablation import summary_lines
from moe_probe.studies.verdicts.sentence import verdict_sentence


def test_long_enumerations_are_a_count_and_five_examples() -> None:
    assert some_of([]) == "none" and some_of(["a"]) == "a" and some_of("abcdef") == "a, b, c, d, e, f"
    assert some_of(range(300)) == "0, 1, 2, 3, 4 and 295 more (300 in all)"
    assert some_of(["x" * 1000]) == "x" * 119 + "…"
    assert some_of("abc", joint="; ") == "a; b; c"


@pytest.mark.parametrize("value", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_what_is_missing_is_said(value: object) -> None:
    assert is_missing(value) and figure(value) == "not tested" and figure(value, missing="–") == "–"


def test_what_is_there_is_a_number() -> None:
    assert not is_missing(0) and not is_missing("") and figure(0.12345) == "0.123" and figure(np.int64(3), "+.0f") == "+3"


def test_three_hundred_topics_of_one_document_are_one_short_warning() -> None:
    n = 300
    groups = GroupUsage(
        shares=np.random.default_rng(0).dirichlet(np.ones(4), n + 8),
        layer=np.zeros(4, int),
        expert=np.arange(4),
        layer_index=np.zeros(4, int),
        selections=np.full((n + 8, 1), 50.0),
        topic=np.concatenate([np.arange(n), np.repeat([n, n + 1], 4)]),
        topics=tuple(f"t{i:03d}" for i in range(n + 2)),
        groups=tuple(f"g{i}" for i in range(n + 8)),
    )
    (told,) = _size_warnings(groups)
    assert "t000, t001, t002, t003, t004 and 295 more (300 in all)" in told and len(told) < 200


def test_evidence_without_numbers_says_so() -> None:
    row = {
        "topic": "a",
        "verdict": "none",
        "grade": "none",
        "layer": pd.NA,
        "experts": "",
        "log2_lift": np.nan,
        "ci_low": np.nan,
        "ci_high": np.nan,
        "log2_beyond_words": np.nan,
        "auroc_feature": 0.9,
        "feature_beyond_expert": np.nan,
        "causal": "not confirmed",
        "ablation_delta_nats": 0.1,
        "ablation_low": np.nan,
        "ablation_high": np.nan,
    }
    told = verdict_sentence(row)
    assert told.startswith("No. ") and "no expert to compare with" in told and "no interval" in told
    assert "nan" not in told


def test_knocked_out_without_controls() -> None:
    table = pd.DataFrame(
        [
            {
                "topic": "a",
                "unit": "expert 0:1",
                "delta_nats": 0.1,
                "ci_low": 0.0,
                "ci_high": 0.2,
                "control_nats": np.nan,
                "confirmed": False,
                "held_to": True,
            }
        ]
    )
    assert list(summary_lines(Result("ablation", table))) == [
        "a: without expert 0:1 +0.1000 nats [+0.0000, +0.2000], no controls"
    ]
