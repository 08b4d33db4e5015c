"""Labels, topics and counts of features, made alike for depth-first and for breadth-first dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.experts.topic_groups import other_labels
from moe_probe.features.describe import GOOD_HARD_SCORE, GOOD_SCORE
from moe_probe.features.labels.context import token_context
from moe_probe.features.topic_enrichment import enrich, group_rates
from moe_probe.features.tree.edges import unit_rows

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.features.tree.dictionary import Dictionary
    from moe_probe.features.tree.options import TreeSettings
    from moe_probe.recording.rundir import RunDirectory

#: Decoder rows closer than this are one feature (Paulo and Belrose 2025, arXiv:2501.16615).
_SAME = 0.7
#: Share of the tokens that a label speaks of on which its feature fires. Without it a small dictionary's "line breaks, where its
#: root fires" would pass as "line breaks" and count as a feature of the subject.
_PRECISION = 0.5


@dataclass(frozen=True)
class Candidates:
    """Features to judge.

    Attributes
    ----------
    directions : ndarray of float, shape (n_features, d_in)
        Decoder rows.
    train, held_out : Firings
        On all tokens of the trace's two parts.
    """

    directions: np.ndarray
    train: Firings
    held_out: Firings


class FeatureJudge:
    """Labels features by rules, and tests them for the topic.

    Parameters
    ----------
    run : RunDirectory
    topic : str
        Topic that features are counted for.
    settings : TreeSettings
        Label column, strata, permutations, alpha and seed of the test.
    """

    def __init__(self, run: RunDirectory, topic: str, settings: TreeSettings) -> None:
        self._run, self._topic, self._settings = run, topic, settings
        labels = [settings.by, *other_labels(run.usage(), label=settings.by)]
        self._context = token_context(run, labels=tuple(dict.fromkeys(labels)))

    def judge(self, candidates: Candidates) -> pd.DataFrame:
        """Judge any features: ``label, label_score, good, topic, auroc_topic, density, alive, mine`` (of the topic)."""
        import pandas as pd

        from moe_probe.features.labels.rule_labels import label_by_rules

        settings, train, held_out = self._settings, candidates.train, candidates.held_out
        labels = label_by_rules(self._context, train, held_out, decoder=candidates.directions)
        rates = [
            group_rates(self._run.documents, self._context.document, f, label=settings.by, strata=settings.strata)
            for f in (train, held_out)
        ]
        topics = enrich(*rates, permutations=settings.permutations, alpha=settings.alpha, seed=settings.seed)
        names = np.array([*topics.topics, ""], dtype=object)[topics.topic]
        scored = labels.detection
        with np.errstate(invalid="ignore"):
            good = (scored.score >= GOOD_SCORE) & ~(scored.hard_score < GOOD_HARD_SCORE) & (scored.precision >= _PRECISION)
        alive = (train.counts > 0) & (held_out.counts > 0)
        return pd.DataFrame(
            {
                "label": labels.text,
                "label_score": scored.score,
                "good": good & alive,
                "topic": names,
                "auroc_topic": topics.auroc,
                "density": train.counts / max(len(train.rows), 1),
                "alive": alive,
                "mine": (names == self._topic) & alive,
            }
        )

    def stored(self, dictionary: Dictionary) -> pd.DataFrame | None:
        """Read the same of an SAE of the run from its table of features; None where that was not made by the same rules."""
        stored, settings = self._run.results["features"], self._settings
        rows = stored.table[stored.table["sae"] == dictionary.name].sort_values("feature")
        if (
            len(rows) != dictionary.width - dictionary.first
            or any(stored.params.get(k) != getattr(settings, k) for k in ("by", "strata", "alpha"))
            or not rows["label_source"].isin(["rule", "none"]).all()
        ):
            return None
        alive = (rows["density"] > 0) & (rows["n_firings"] > 0)
        good = rows["good"] & (rows["label_precision"] >= _PRECISION) & alive
        return rows.assign(alive=alive, good=good, mine=(rows["topic"] == self._topic) & alive)


def count_features(judged: pd.DataFrame, directions: np.ndarray, *, operations: float) -> dict[str, Any]:
    """Count features as a row of ``depth_first``.

    Parameters
    ----------
    judged : pandas.DataFrame
        From `FeatureJudge`.
    directions : ndarray of float, shape (n_features, d_in)
        Decoder rows of the same features.
    operations : float
        Floating-point operations that were spent on them.

    Returns
    -------
    dict
        ``features, operations, subject, good, distinct, per_operation``.
    """
    good = judged["mine"] & judged["good"]
    distinct = _n_distinct(directions, judged["label_score"].to_numpy(), good.to_numpy())
    return {
        "features": int(judged["alive"].sum()),
        "operations": float(operations),
        "subject": int(judged["mine"].sum()),
        "good": int(good.sum()),
        "distinct": distinct,
        "per_operation": 1e9 * distinct / operations,
    }


def _n_distinct(directions: np.ndarray, scores: np.ndarray, use: np.ndarray) -> int:
    """Count features of which no two point the same way, taken by falling label score."""
    order = np.flatnonzero(use)
    order = order[np.argsort(-scores[order], kind="stable")]
    unit = unit_rows(directions)
    kept: list[int] = []
    for i in order:
        if not kept or float((unit[kept] @ unit[i]).max()) < _SAME:
            kept.append(int(i))
    return len(kept)
