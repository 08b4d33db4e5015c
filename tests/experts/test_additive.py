"""What words predict, where words are bursty: a document repeats its own names, and others mention them once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_probe.experts.explain import expected_usage
from moe_probe.testing import planted_routing, write_routing


def test_a_token_router_is_predicted_where_words_are_bursty(tmp_path: Path) -> None:
    """A mention that is known from the one document that is about it is predicted from that document."""
    routing = planted_routing(topics=3, documents_per_topic=16, tokens=80, n_layers=1, num_experts=8, top_k=1, seed=0)
    document, rng = routing.document, np.random.default_rng(0)
    token_id = rng.integers(0, 40, len(document))
    name = 100 + np.arange(48)
    for d in range(48):
        rows = rng.permutation(np.flatnonzero(document == d))
        token_id[rows[:12]] = name[d]
        token_id[rows[12:16]] = name[d // 16 * 16 + (d + np.arange(1, 5)) % 16]
    # expert 0 serves the names of the first topic, and nothing else
    chosen = np.where((token_id >= 100) & (token_id < 116), 0, 1 + token_id % 7).astype(np.uint8)[:, None, None]
    trace = write_routing(tmp_path / "t", replace(routing, experts=chosen, token_id=token_id))
    usage = expected_usage(trace)
    assert (usage.observed[:, 0] > 0.02).sum() == 16
    assert np.abs(usage.observed - usage.expected)[:, 0].max() < 0.01
