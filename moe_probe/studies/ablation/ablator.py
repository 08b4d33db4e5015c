"""Losses with units knocked out, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import track
from moe_probe.core.results import Result
from moe_probe.core.stats.bootstrap import BOOTSTRAP
from moe_probe.features.spliced_loss import Splice, losses, site_of
from moe_probe.studies.ablation.feature_removal import FeatureRemoval
from moe_probe.studies.ablation.rises import RiseComparison
from moe_probe.studies.ablation.settings import AblationSettings

if TYPE_CHECKING:
    from moe_probe.models.prefix import PrefixCache
    from moe_probe.sae import Sae
    from moe_probe.studies.ablation.baseline import AblationBaseline
    from moe_probe.studies.ablation.units import Unit

_SOURCES = (
    "Meng et al. 2022, causal interventions on activations, arXiv:2202.05262",
    "Wang et al. 2022, zero and mean ablation, arXiv:2211.00593",
    *BOOTSTRAP,
)
_HOW_IN_WORDS = {
    "mask": "masked in the router (the next best experts take their place, gate weights as the model renormalises them)",
    "zero": "output zeroed",
    "mean": "output replaced by its mean",
    "steer": "logits raised",
}


class Ablator:
    """Measures losses without a unit. It is fastest for units in the order of `Unit.key`: caches are of one layer and SAE.

    Parameters
    ----------
    baseline : AblationBaseline
    settings : AblationSettings
    load_sae : callable
        Gives the SAE of a folder below RUN/sae.
    """

    def __init__(self, baseline: AblationBaseline, settings: AblationSettings, load_sae: Callable[[str], Sae]) -> None:
        self.baseline, self.settings, self._load_sae = baseline, settings, load_sae
        self._layer: int | None = None
        self._prefix: PrefixCache | None = None
        self._means: Any = None
        self._removal: FeatureRemoval | None = None

    def ablated_losses(self, unit: Unit) -> np.ndarray:
        """Measure the losses with a unit knocked out (or steered to).

        Returns
        -------
        ndarray, shape (n_documents,)
            Mean next-token losses, nats a token.

        Raises
        ------
        MoeProbeError
            When a loss is not a number.
        """
        from moe_probe.models.intervene import Intervention, intervened

        loaded, how = self.baseline.loaded, self.settings.how
        if unit.layer != self._layer:
            self._enter(unit.layer)
        if unit.sae:
            ablated = self._losses(self._removal_from(unit.sae).splice(unit.members))
        else:
            if how == "mean" and self._means is None:
                self._means = self._mean_outputs(unit.layer)
            change = Intervention(unit.members, how, self.settings.boost, self._means)
            with intervened(site_of(loaded, unit.layer), change):
                ablated = self._losses()
        if not np.isfinite(ablated).all():
            raise MoeProbeError(
                f"the loss without {unit.name} is not a number", "the model breaks down without it", "--how zero or mean"
            )
        return ablated

    def _losses(self, splice: Splice | None = None) -> np.ndarray:
        base = self.baseline
        return losses(base.loaded, base.sample, splice, prefix=self._prefix, suffix=base.suffix)

    def _enter(self, layer: int) -> None:
        """Cache what lies below a layer, if passes with the cache give the very same losses."""
        from moe_probe.models.prefix import PrefixCache

        self._layer, self._means, self._prefix = layer, None, None
        cache = PrefixCache(self.baseline.loaded.model, site_of(self.baseline.loaded, layer))
        if cache.below:
            self._prefix = cache
            # remembered in the first pass; the third shows whether the second wrote into what was handed over
            passes = [self._losses() for _ in range(3)]
            if not all(np.array_equal(values, self.baseline.losses) for values in passes):
                self._prefix = None

    def _removal_from(self, sae: str) -> FeatureRemoval:
        if self._removal is None or self._removal.name != sae:
            self._removal = FeatureRemoval(sae, self._load_sae(sae))
        return self._removal

    def _mean_outputs(self, layer: int) -> Any:
        from moe_probe.models.intervene import mean_outputs

        with mean_outputs(site_of(self.baseline.loaded, layer)) as collected:
            losses(self.baseline.loaded, self.baseline.sample)
            return collected()


def knock_out(ablator: Ablator, units: Sequence[Unit], controls: Mapping[Unit, Sequence[Unit]]) -> Result:
    """Knock units out one after the other and compare the losses.

    Parameters
    ----------
    ablator : Ablator
    units : sequence of Unit
    controls : mapping of Unit to sequence of Unit
        For each unit others of the same kind and load that it is compared with.

    Returns
    -------
    Result
        ``ablation``, one row per unit and topic: ``layer, unit, topic, delta_nats`` (rise of the mean next-token loss on the
        topic's held-out documents), ``ci_low, ci_high, kind, members, sae, how, held_to`` (the unit was put forward for
        this topic), ``control_nats`` (mean rise without its controls), ``beyond_control`` and ``beyond_others`` (rise less
        the controls'; less the mean rise on the other topics of two groups or more), each with ``_low, _high``,
        ``confirmed`` (all three intervals above 0), ``n_controls, n_documents``, ``confirmation`` (in words, as `confirmation`
        gives it). Intervals are NaN for topics of one group of documents, ``control_nats`` and ``beyond_control`` without
        controls.
    """
    import pandas as pd

    baseline, settings = ablator.baseline, ablator.settings
    wanted = {u.key: u for unit in units for u in (unit, *controls.get(unit, ()))}
    rises = {
        key: ablator.ablated_losses(wanted[key]) - baseline.losses
        for key in track(sorted(wanted), "knock out", unit="units and controls", name=lambda key: wanted[key].name)
    }
    comparison = RiseComparison(baseline, resamples=settings.resamples, seed=settings.seed)
    rows: list[dict[str, Any]] = []
    for unit in units:
        others = [rises[control.key] for control in controls.get(unit, ())]
        rows += comparison.rows(unit, rises[unit.key], others, "remove" if unit.sae else settings.how)
    return Result(
        "ablation",
        pd.DataFrame(rows),
        seed=settings.seed,
        citations=_SOURCES,
        caption=_caption(settings),
        params={
            "how": settings.how,
            "boost": settings.boost,
            "resamples": settings.resamples,
            "documents": len(baseline.losses),
            "tokens": int(sum(map(len, baseline.sample.ids))),
            "loss_nats": float(np.average(baseline.losses, weights=baseline.weights)),
        },
    )


def _caption(settings: AblationSettings) -> str:
    raised = f" by {settings.boost:g}" if settings.how == "steer" else ""
    return (
        f"Rise of the mean next-token loss (nats) on held-out documents of each topic. Experts: "
        f"{_HOW_IN_WORDS[settings.how]}{raised}; "
        "features: their share of the activation removed. Intervals: 95 %, bootstrap of documents within topics, "
        "Student's t (92 to 94 % where the rises of up to 12 documents have a heavy tail). Confirmed: the rise on the unit's "
        "own topic is above 0, above that of controls, and above the mean rise on the other topics, each by its interval. "
        "Controls are other units of the same kind and load. Without controls nothing can be confirmed. A unit that another "
        "can stand in for may matter and show no rise; one that all text needs shows a rise on every topic."
    )
