"""What happens to the loss on each topic when an expert, a group of experts or a feature is knocked out?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import track
from moe_probe.core.results import Result
from moe_probe.core.stats import Interval, Resamples, labelled_documents, student_interval
from moe_probe.core.stats.bootstrap import BOOTSTRAP, satterthwaite, spread
from moe_probe.core.units import UnitRef, format_members
from moe_probe.features.spliced_loss import LossSample, Suffix, first_losses, loss_sample, losses, site_of
from moe_probe.studies.ablation.removal import Remover
from moe_probe.studies.verdicts.evidence import confirmation

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.models.prefix import PrefixCache
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import Sae

_SOURCES = (
    "Meng et al. 2022, causal interventions on activations, arXiv:2202.05262",
    "Wang et al. 2022, zero and mean ablation, arXiv:2211.00593",
    *BOOTSTRAP,
)
_SAY = {
    "mask": "masked in the router (the next best experts take their place, gate weights as the model renormalises them)",
    "zero": "output zeroed",
    "mean": "output replaced by its mean",
    "steer": "logits raised",
}


class Unit(NamedTuple):
    """What is knocked out. `members` are experts of the layer, or features of `sae`; `topics` are those it is held to."""

    kind: str
    layer: int
    members: tuple[int, ...]
    topics: tuple[str, ...] = ()
    #: Folder of the features' SAE, "" for experts.
    sae: str = ""

    @property
    def name(self) -> str:
        """As tables show it."""
        return UnitRef(self.members, sae=self.sae).title if self.sae else UnitRef(self.members, self.layer).title


@dataclass(frozen=True)
class Bench:
    """A model with the documents that losses are measured on.

    Attributes
    ----------
    plain : ndarray, shape (n_documents,)
        Losses as is, nats a token.
    topic, group : ndarray of int, shape (n_documents,)
        Topics numbered as in `topics`.
    suffix : Suffix or None
        For predicting only what changed.
    """

    loaded: LoadedModel
    sample: LossSample
    plain: np.ndarray
    topic: np.ndarray
    group: np.ndarray
    topics: tuple[str, ...]
    suffix: Suffix | None
    prefixes: dict[int, PrefixCache | None] = field(default_factory=dict)
    removers: list[Remover] = field(default_factory=list)

    def without(self, unit: Unit, *, how: str, boost: float = 0.0, sae: Sae | None = None, means: Any = None) -> np.ndarray:
        """Losses of every document with a unit knocked out (or steered to), nats a token."""
        from moe_probe.models.intervene import Intervention, intervened

        prefix = self.prefix(unit.layer)
        if unit.sae:
            if sae is None:
                raise MoeProbeError(f"the SAE of {unit.name} was not given", "", "the run that it belongs to")
            found = losses(
                self.loaded,
                self.sample,
                self._remover(unit.sae, sae).without(unit.members),
                prefix=prefix,
                suffix=self.suffix,
            )
        else:
            change = Intervention(unit.members, how, boost, means)
            with intervened(site_of(self.loaded, unit.layer), change):
                found = losses(self.loaded, self.sample, prefix=prefix, suffix=self.suffix)
        if not np.isfinite(found).all():
            raise MoeProbeError(
                f"the loss without {unit.name} is not a number", "the model breaks down without it", "--how zero or mean"
            )
        return found

    def _remover(self, name: str, sae: Sae) -> Remover:
        if not self.removers or self.removers[0].name != name:
            self.removers[:] = [Remover(name, sae)]  # units are taken SAE by SAE: one's activations in memory at a time
        return self.removers[0]

    def prefix(self, layer: int) -> PrefixCache | None:
        """Cache of what lies below, if passes with it give the very same losses."""
        from moe_probe.models.prefix import PrefixCache

        if layer not in self.prefixes:
            cache = PrefixCache(self.loaded.model, site_of(self.loaded, layer))
            # remembered in the first pass; the third shows whether the second wrote into what was handed over
            passes = [
                losses(self.loaded, self.sample, prefix=cache, suffix=self.suffix) for _ in range(3 if cache.below else 0)
            ]
            same = bool(passes) and all(np.array_equal(found, self.plain) for found in passes)
            self.prefixes.clear()  # one layer's activations in memory at a time: units are taken layer by layer
            self.prefixes[layer] = cache if same else None
        return self.prefixes[layer]


def make_bench(
    loaded: LoadedModel, trace: Trace, held_out: np.ndarray, *, label: str = "topic", max_tokens: int = 24_576, seed: int = 0
) -> Bench:
    """Choose documents for losses, all of those held out if they fit when they are cut short, and measure them as they are.

    Raises
    ------
    MoeProbeError
        When the model is not the trace's, or fewer than two topics have documents.
    """
    from moe_probe.core.schema import need_same_weights

    need_same_weights(loaded.info, trace.manifest.model)
    keep, labels, names = labelled_documents(trace.documents, label=label)
    held_out = held_out & keep
    # more documents say more than longer ones: intervals come from documents
    cut = max(64, max_tokens // max(int(held_out.sum()), 1))
    sample = loss_sample(trace, held_out, max_tokens=max_tokens, cut=cut, seed=seed)
    rows = list(sample.documents)
    topics, topic = np.unique(labels[rows].astype(str), return_inverse=True)
    if len(topics) < 2:
        raise MoeProbeError(
            f"the held-out documents have one {label}", "there is nothing to compare it with", "more documents"
        )
    _, group = np.unique(names[rows].astype(str), return_inverse=True)
    plain, suffix = first_losses(loaded, sample)
    return Bench(loaded, sample, plain, topic, group, tuple(str(t) for t in topics), suffix)


def knock_out(
    bench: Bench,
    units: Sequence[Unit],
    controls: Mapping[Unit, Sequence[Unit]],
    *,
    how: str = "mask",
    boost: float = 0.0,
    saes: Callable[[str], Sae] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Knock units out one after the other and compare the losses.

    Parameters
    ----------
    bench : Bench
    units : sequence of Unit
    controls : mapping
        For each unit others of the same kind and load that it is compared with.
    how : {"mask", "zero", "mean", "steer"}
        For experts; a feature's share of the activation is always taken away.
    saes : callable, optional
        Gives the SAE of a folder, for features.
    resamples : int
        Bootstrap resamples of groups of documents, within topics.

    Returns
    -------
    Result
        ``ablation``, a row per unit and topic: ``layer, unit, topic, delta_nats`` (rise of the mean next-token loss on the
        topic's held-out documents), ``ci_low, ci_high, kind, members, sae, how, held_to`` (the unit was put forward for
        this topic), ``control_nats`` (mean rise without its controls), ``beyond_control`` and ``beyond_others`` (rise less
        the controls'; less the mean rise on the other topics of two groups or more), each with ``_low, _high``,
        ``confirmed`` (all three intervals above 0), ``n_controls, n_documents``, ``confirmation`` (in words, as `confirmation`
        gives it). Intervals are NaN for topics of one group of documents, ``control_nats`` and ``beyond_control`` without
        controls.
    """
    import pandas as pd

    wanted = {(u.layer, u.sae, u.members): u for unit in units for u in (unit, *controls.get(unit, ()))}
    means: dict[int, Any] = {}
    rises: dict[tuple[int, str, tuple[int, ...]], np.ndarray] = {}
    # layer by layer
    for key in track(sorted(wanted), "knock out", unit="units and controls", name=lambda key: wanted[key].name):
        unit = wanted[key]
        if how == "mean" and not unit.sae and unit.layer not in means:
            means[unit.layer] = _means(bench, unit.layer)
        sae = saes(unit.sae) if unit.sae and saes is not None else None
        rises[key] = bench.without(unit, how=how, boost=boost, sae=sae, means=means.get(unit.layer)) - bench.plain
    compare = _Comparison(bench, resamples, seed)
    rows: list[dict[str, Any]] = []
    for unit in units:
        others = [rises[u.layer, u.sae, u.members] for u in controls.get(unit, ())]
        rows += compare.rows(unit, rises[unit.layer, unit.sae, unit.members], others, "remove" if unit.sae else how)
    return Result(
        "ablation",
        pd.DataFrame(rows),
        seed=seed,
        citations=_SOURCES,
        caption=_caption(how, boost),
        params={
            "how": how,
            "boost": boost,
            "resamples": resamples,
            "documents": len(bench.plain),
            "tokens": int(sum(map(len, bench.sample.ids))),
            "loss_nats": float(np.average(bench.plain, weights=_weights(bench))),
        },
    )


def _caption(how: str, boost: float) -> str:
    raised = f" by {boost:g}" if how == "steer" else ""
    return (
        f"Rise of the mean next-token loss (nats) on held-out documents of each topic. Experts: {_SAY[how]}{raised}; "
        "features: their share of the activation taken away. Intervals: 95 %, bootstrap of documents within topics, "
        "Student's t (92 to 94 % where the rises of up to 12 documents have a heavy tail). Confirmed: the rise on the unit's "
        "own topic is above 0, above that of other units of the same kind and load (controls), and above the mean rise on "
        "the other topics, each by its interval. Without controls nothing can be confirmed. A unit that another can stand "
        "in for may matter and show no rise; one that all text needs shows a rise on every topic."
    )


def _weights(bench: Bench) -> np.ndarray:
    return np.array([len(ids) - 1 for ids in bench.sample.ids], dtype=np.float64)


def _means(bench: Bench, layer: int) -> Any:
    from moe_probe.models.intervene import mean_outputs

    with mean_outputs(site_of(bench.loaded, layer)) as collected:
        losses(bench.loaded, bench.sample)
        return collected()


class _Comparison:
    """Rises by topic under resampling of groups within topics; the first draw is the sample itself."""

    def __init__(self, bench: Bench, resamples: int, seed: int) -> None:
        self.bench = bench
        weight = _weights(bench)
        n_topics = len(bench.topics)
        # a group of one source may lie in two topics: it is drawn in each by itself
        cells, number = np.unique(bench.group * n_topics + bench.topic, return_inverse=True)
        drawn = Resamples(cells % n_topics, n=resamples, seed=seed).weights[:, number] * weight
        self.weights = []
        for topic in range(n_topics):
            own = drawn * (bench.topic == topic)
            self.weights.append(own / own.sum(1, keepdims=True))
        self.freedom = np.bincount(cells % n_topics, minlength=n_topics) - 1.0

    def rows(self, unit: Unit, rise: np.ndarray, controls: list[np.ndarray], how: str) -> list[dict[str, Any]]:
        """One row per topic."""
        own = np.stack([w @ rise for w in self.weights])
        control = np.mean([np.stack([w @ c for w in self.weights]) for c in controls], axis=0) if controls else own * np.nan
        out = []
        for t, topic in enumerate(self.bench.topics):
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
                "held_to": topic in unit.topics,
                "control_nats": float(control[t, 0]),
                **student_interval(own[t] - control[t], df).row("beyond_control", "beyond_control"),
                **self._beyond_others(own, t).row("beyond_others", "beyond_others"),
            }
            row["confirmed"] = bool(row["ci_low"] > 0 and row["beyond_control_low"] > 0 and row["beyond_others_low"] > 0)
            row |= {"n_controls": len(controls), "n_documents": int((self.bench.topic == t).sum())}
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


def matched_controls(
    unit: Unit, load: np.ndarray, *, n: int, avoid: frozenset[int] = frozenset(), seed: int = 0
) -> list[Unit]:
    """Draw units of the same kind and size whose members' loads are nearest to the unit's.

    Parameters
    ----------
    load : ndarray, shape (n_members,)
        Of all experts of the layer, or features of the SAE.
    n : int
        How many; drawn from the 3 n nearest.
    avoid : frozenset of int
        Members that are put forward for the same topics.

    Returns
    -------
    list of Unit
        Fewer than `n` where there are not so many others.
    """
    rng = np.random.default_rng([seed, unit.layer, *unit.members])
    banned = set(unit.members) | avoid
    pool = np.array([m for m in np.flatnonzero(load > 0) if m not in banned])
    if len(pool) < len(unit.members):
        return []
    drawn: list[tuple[int, ...]] = []
    for _ in range(8 * n):
        free, members = pool.copy(), []
        for member in unit.members:
            distance = np.abs(np.log(load[free] / max(load[member], 1e-12)))
            near = free[np.argsort(distance, kind="stable")[: 3 * n]]
            members.append(int(rng.choice(near)))
            free = free[free != members[-1]]
        chosen = tuple(sorted(members))
        if chosen not in drawn:
            drawn.append(chosen)
        if len(drawn) == n:
            break
    return [Unit(unit.kind, unit.layer, members, (), unit.sae) for members in drawn]
