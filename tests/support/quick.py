"""Analyses at a fraction of their cost, for tests that are about something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: One white pixel.
_PNG = (
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)


def leave_out_figures(patch: pytest.MonkeyPatch) -> None:
    """Put a white pixel in place of every figure of a report: laying out a dozen takes longer than analysing a tiny run."""
    from moe_probe.report import build
    from moe_probe.report.plots.drawing import FigureFiles

    pixel = bytes.fromhex(_PNG)

    def drawn(figure: object, kinds: tuple[str, ...], in_page: bool) -> FigureFiles:
        return FigureFiles({"png": pixel} if "png" in kinds else {}, pixel, pixel)

    patch.setattr(build, "figure_files", drawn)


@contextmanager
def quick(*, drawn: bool = False) -> Iterator[None]:
    """Fewer draws and steps in what costs most of a run: clusters, maps, fits of routing; figures only where `drawn`.

    What they find is tested in `test_clusters` and `test_matching`, figures in `test_plots` and `test_report`, and
    `test_pipeline` runs them whole.
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
        if not drawn:
            leave_out_figures(patch)
        yield
