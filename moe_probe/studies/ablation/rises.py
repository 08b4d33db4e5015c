"""Rises of the loss without a unit: by topic, compared with controls and with other topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.stats import Interval, Resamples, student_interval
from moe_probe.core.stats.bootstrap import satterthwaite, spread
from moe_probe.core.units import format_members
from moe_probe.studies.verdicts import confirmation

if TYPE_CHECKING:
    from moe_probe.studies.ablation.baseline import AblationBaseline
    from moe_probe.studies.ablation.units import Unit


class RiseComparison:
    """Rises by topic under resampling of groups within topics; the first draw is the sample itself.

    Parameters
    ----------
    baseline : AblationBaseline
    resamples : int
    seed : int

    Attributes
    ----------
    weights : list of ndarray, shape (n_resamples + 1, n_documents)
        For each topic, weights of its documents that sum to one.
    freedom : ndarray, shape (n_topics,)
        Degrees of freedom: groups of a topic less one.
    """

    def __init__(self, baseline: AblationBaseline, *, resamples: int, seed: int) -> None:
        self.baseline = baseline
        n_topics = len(baseline.topics)
        # a group of one source may lie in two topics: it is drawn in each by itself
        cells, number = np.unique(baseline.group * n_topics + baseline.topic, return_inverse=True)
        drawn = Resamples(cells % n_topics, n=resamples, seed=seed).weights[:, number] * baseline.weights
        self.weights = []
        for topic in range(n_topics):
            own = drawn * (baseline.topic == topic)
            self.weights.append(own / own.sum(1, keepdims=True))
        self.freedom = np.bincount(cells % n_topics, minlength=n_topics) - 1.0

    def rows(self, unit: Unit, rise: np.ndarray, controls: list[np.ndarray], how: str) -> list[dict[str, Any]]:
        """Make the rows of ``ablation`` for one unit, one per topic.

        Parameters
        ----------
        unit : Unit
        rise : ndarray, shape (n_documents,)
            Loss without the unit less the baseline's, nats a token.
        controls : list of ndarray, shape (n_documents,)
            The same for each control.
        how : str
            As the column has it.

        Returns
        -------
        list of dict
        """
        own = np.stack([w @ rise for w in self.weights])
        control = np.mean([np.stack([w @ c for w in self.weights]) for c in controls], axis=0) if controls else own * np.nan
        out = []
        for t, topic in enumerate(self.baseline.topics):
            df = self.freedom[t]
            row: dict[str, Any] = {
                "layer": unit.layer,
                "unit": unit.name,
                "topic": topic,
                **student_interval(own[t], df).row("delta_nats", "ci"),
                "kind": unit.kind,
                "members": format_members(unit.members),
                "sae": unit.sae,
                "how": how,
                "held_to": topic in unit.claimed_topics,
                "control_nats": float(control[t, 0]),
                **student_interval(own[t] - control[t], df).row("beyond_control", "beyond_control"),
                **self._beyond_others(own, t).row("beyond_others", "beyond_others"),
            }
            row["confirmed"] = bool(row["ci_low"] > 0 and row["beyond_control_low"] > 0 and row["beyond_others_low"] > 0)
            row |= {"n_controls": len(controls), "n_documents": int((self.baseline.topic == t).sum())}
            out.append(row | {"confirmation": confirmation(row)})
        return out

    def _beyond_others(self, own: np.ndarray, t: int) -> Interval:
        """Rise on a topic less the mean rise on the others, which are drawn independently of each other.

        Topics of one group are none of the others where there are larger ones: nothing is known of how much they vary, and
        resamples would take them for certain.
        """
        others = np.arange(len(own)) != t
        large = others & (self.freedom >= 1)
        rest = own[large if large.any() else others].mean(0)
        if not large.any() or self.freedom[t] < 1:
            return student_interval(own[t] - rest, 0.0)
        shares = np.where(large, 1 / large.sum(), np.arange(len(own)) == t)
        df = satterthwaite(np.square(spread(own[:, 1:].T) * shares), self.freedom)
        return student_interval(own[t] - rest, float(df))
