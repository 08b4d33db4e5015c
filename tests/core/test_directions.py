"""A claim needs one direction: the test compares a topic with the other groups, the lift with the mean over topics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from moe_probe.core.stats import GroupUsage, draw_divisions
from moe_probe.experts.topic_tests import topic_effects
from moe_probe.experts.topics import expert_topics
from moe_probe.testing import planted_routing


def aligned(usage: np.ndarray, topic: np.ndarray, strata: np.ndarray | None, rng: np.random.Generator) -> pd.DataFrame:
    """Expert 0 with the usage given; two others share the rest."""
    other = rng.uniform(0.2, 0.4, len(topic))
    groups = GroupUsage(
        shares=np.stack([usage, other, 1 - usage - other], axis=1),
        layer=np.zeros(3, dtype=int),
        expert=np.arange(3),
        layer_index=np.zeros(3, dtype=int),
        selections=np.full((len(topic), 1), 500.0),
        topic=topic,
        topics=tuple(f"t{i}" for i in range(topic.max() + 1)),
        groups=tuple(map(str, range(len(topic)))),
        strata=strata,
    )
    table = topic_effects(groups, draw_divisions(topic, strata, seed=0), permutations=199).table
    return table[table["expert"] == 0].set_index("topic")


def test_more_than_the_average_topic_but_less_than_most_documents_is_no_claim() -> None:
    """One topic has most documents and uses the expert most; another is above the mean over topics only."""
    rng = np.random.default_rng(0)
    topic = np.repeat(np.arange(8), [20, 200, *[20] * 6])
    table = aligned(rng.normal(np.array([0.1, 0.2, *[0.001] * 6])[topic], 0.02).clip(0), topic, None, rng)
    assert table.loc["t0", "log2_lift"] > 1 and table.loc["t0", "q_value"] <= 0.05 and table.loc["t0", "auroc"] < 0.5
    assert not table.loc["t0", "significant"]
    assert table.loc["t1", "significant"] and table.loc["t1", "replicated"]


def test_more_by_its_register_but_less_within_registers_is_no_claim() -> None:
    rng = np.random.default_rng(1)
    topic = np.repeat(np.arange(5), 40)
    register = np.where(rng.random(200) < np.where(topic == 1, 0.9, 0.1), 1, 0)
    usage = rng.normal(0.02 + 0.2 * register - 0.05 * ((topic == 1) & (register == 1)), 0.01).clip(0.001)
    row = aligned(usage, topic, register, rng).loc["t1"]
    assert row["log2_lift"] > 1 and row["q_value"] <= 0.05
    assert not row["significant"]


def test_the_corpus_own_halves_need_no_groups() -> None:
    usage = planted_routing(topics=3, documents_per_topic=8, tokens=40, n_layers=1, num_experts=6, lift=1.5, seed=0).usage()
    documents = usage.documents.drop(columns="group").assign(split=["discovery", "replication"] * 12)
    result = expert_topics(replace(usage, documents=documents), permutations=99)
    assert result.params["halves"] == "the corpus's own split" and result.table["p_replication"].notna().all()
