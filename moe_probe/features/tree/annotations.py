"""Topic and label of every feature of a run, as ``moe-probe label`` writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from moe_probe.recording.rundir import RunDirectory


class Annotation(NamedTuple):
    """Topic that a feature is enriched for and label of the feature, "" for none."""

    topic: str = ""
    label: str = ""


class Annotations(dict[tuple[str, int], Annotation]):
    """Annotations of features by SAE (folder below RUN/sae) and number; features without one have an empty one."""

    def __missing__(self, key: tuple[str, int]) -> Annotation:
        """Give features without an annotation an empty one."""
        return Annotation()


def feature_annotations(run: RunDirectory) -> Annotations:
    """Read topic and label of every feature; empty where features were not labelled."""
    if "features" not in run.results:
        return Annotations()
    rows = run.results["features"].table.itertuples()
    return Annotations({(str(r.sae), int(r.feature)): Annotation(str(r.topic), str(r.label)) for r in rows})
