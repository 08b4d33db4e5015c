"""Analyses at a fraction of their cost, for tests that are about something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def quick() -> Iterator[None]:
    """Fewer draws and steps in what costs most of a run: clusters, maps, fits of routing.

    What they find is tested in `test_clusters` and `test_matching`, and `test_pipeline` runs them whole.
    """
    from moe_probe.experts.clusters import clustering, kmeans
    from moe_probe.features.matching import routing_prediction

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "_NULLS", 2)
        patch.setattr(kmeans, "K_RANGE", (2, 3))
        # not UMAP, which compiles itself for ten seconds in every process
        patch.setattr(clustering, "_umap", lambda features, seed: kmeans.leading_components(features, seed)[:, :2])
        patch.setattr(routing_prediction, "_EPOCHS", 2)
        patch.setattr(routing_prediction, "_STEPS", 2)
        yield
