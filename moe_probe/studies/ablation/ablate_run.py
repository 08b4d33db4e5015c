"""Knock out the units of a run that could carry a topic, and put the answer into its verdicts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.progress import Say
from moe_probe.core.results import Result
from moe_probe.core.units import UnitRef, parse_members
from moe_probe.sae.held_out import held_out_documents
from moe_probe.studies.ablation.knock_out import Unit, knock_out, make_bench, matched_controls
from moe_probe.studies.verdicts.evidence import NOT_CONFIRMED, confirmation, rise_text

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.models import LoadedModel
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import Sae


@dataclass(frozen=True)
class AblationSettings:
    """How knock-outs are done.

    Attributes
    ----------
    how : {"mask", "zero", "mean", "steer"}
    boost : float
        Added to logits when steering.
    tokens : int
        Tokens of held-out documents that losses are measured on.
    controls : int
        Units of the same load that each one is compared with. 0: nothing can be confirmed.
    resamples : int
    seed : int
    """

    how: str = "mask"
    boost: float = 0.0
    tokens: int = 24_576
    controls: int = 2
    resamples: int = 1000
    seed: int = 0


def ablate(
    run: Path,
    trace: Trace,
    loaded: LoadedModel,
    *,
    units: Sequence[Unit] = (),
    by: str = "topic",
    settings: AblationSettings | None = None,
    say: Say = print,
) -> Result:
    """Knock out experts, groups and features of a run and measure the loss on every topic.

    Parameters
    ----------
    units : sequence of Unit
        Empty: for every topic the expert (or group) of its verdict and, where matched, its best feature.
    by : str
        Label whose values losses are compared over.

    Returns
    -------
    Result
        ``ablation``, as `moe_probe.studies.ablation.knock_out.knock_out` gives it.

    Raises
    ------
    MoeProbeError
        When the model is not the trace's, or the run has neither verdicts nor units were named.
    """
    settings = settings or AblationSettings()
    started = time.monotonic()
    chosen = list(units) or candidates(run)
    held = held_out_documents(trace, seed=_held_out_seed(run))
    bench = make_bench(loaded, trace, held, label=by, max_tokens=settings.tokens, seed=settings.seed)
    say(
        f"losses of {len(bench.plain)} held-out documents, {sum(map(len, bench.sample.ids)):,} tokens: "
        f"{bench.plain.mean():.3f} nats; {len(chosen)} units to knock out"
    )

    @lru_cache(maxsize=1)  # features come SAE by SAE
    def sae_of(name: str) -> Sae:
        from moe_probe.sae import load_sae

        return load_sae(run / "sae" / name)

    loads = _Loads(run, trace)
    controls = {
        unit: matched_controls(unit, loads.of(unit), n=settings.controls, avoid=_rivals(unit, chosen), seed=settings.seed)
        for unit in chosen
    }
    result = knock_out(
        bench,
        chosen,
        controls,
        how=settings.how,
        boost=settings.boost,
        saes=sae_of,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    say(f"{len(chosen)} units and their controls in {time.monotonic() - started:.1f} s")
    return result


def candidates(run: Path) -> list[Unit]:
    """Units that stand for a topic: those of the verdicts, and the best features where experts were matched with them.

    Raises
    ------
    MoeProbeError
        When the run has no verdicts.
    """
    table = Result.load(run / "results", "verdicts").table
    held_to: dict[tuple[str, int, tuple[int, ...], str], list[str]] = {}
    for row in table.itertuples():
        if str(row.experts):
            members = parse_members(row.experts)
            held_to.setdefault(("expert" if len(members) == 1 else "experts", int(row.layer), members, ""), []).append(
                row.topic
            )
    if (run / "results" / "carriers.parquet").exists():
        carriers = Result.load(run / "results", "carriers").table
        for row in carriers[carriers["kind"] == "feature"].itertuples():
            held_to.setdefault(("feature", int(row.layer), parse_members(row.members), str(row.source)), []).append(
                row.topic
            )
    if not held_to:
        raise MoeProbeError(
            f"the verdicts of {run} name no expert",
            "there is nothing to knock out",
            "--expert LAYER:EXPERT, or --feature layer_05/width_01024:334",
        )
    return [
        Unit(kind, layer, members, tuple(topics), sae) for (kind, layer, members, sae), topics in sorted(held_to.items())
    ]


def parse_units(run: Path, experts: Iterable[str], features: Iterable[str], topics: Sequence[str]) -> list[Unit]:
    """Read ``5:13``, ``5:13+4`` (a group) and ``layer_05/width_01024:334+12``.

    Raises
    ------
    UsageError
        When one cannot be read, or names an SAE that the run does not have.
    """
    units = []
    for text in experts:
        ref = _parsed("--expert", text, "LAYER:EXPERT, as 5:13, or a group: 5:13+4")
        if ref.layer is None:
            raise UsageError(f"--expert {text} names no layer", "", "LAYER:EXPERT, as 5:13, or --feature")
        members = tuple(sorted(set(ref.members)))
        units.append(Unit("expert" if len(members) == 1 else "experts", ref.layer, members, tuple(topics)))
    for text in features:
        hint = "FOLDER:FEATURE, as layer_05/width_01024:334"
        ref = _parsed("--feature", text, hint)
        folder = run / "sae" / ref.sae
        if not ref.sae or not (folder / "cfg.json").exists():
            raise UsageError(f"--feature {text}: there is no SAE {ref.sae or ref.layer} in {run}", "", hint)
        from moe_probe.sae import load_sae

        config = load_sae(folder).config
        members = tuple(sorted(set(ref.members)))
        if members[-1] >= config.d_sae:
            raise UsageError(
                f"--feature {text} names a feature that does not exist",
                f"the SAE has {config.d_sae}",
                f"0 to {config.d_sae - 1}",
            )
        units.append(Unit("feature" if len(members) == 1 else "features", config.layer, members, tuple(topics), ref.sae))
    return units


def _parsed(option: str, text: str, hint: str) -> UnitRef:
    try:
        return UnitRef.parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {text} cannot be read", "", hint) from error


def _rivals(unit: Unit, units: Sequence[Unit]) -> frozenset[int]:
    """Members of other units of the same place that are held to the same topics: no fair controls."""
    same = [u for u in units if (u.layer, u.sae) == (unit.layer, unit.sae) and set(u.topics) & set(unit.topics)]
    return frozenset(m for u in same for m in u.members)


def _held_out_seed(run: Path) -> int:
    from moe_probe.sae import read_training
    from moe_probe.sae.store import saes_of

    folders = saes_of(run) if (run / "sae").exists() else []
    return int(read_training(folders[0]).get("held_out_seed", 0)) if folders else 0


class _Loads:
    """How often experts are chosen and features fire."""

    def __init__(self, run: Path, trace: Trace) -> None:
        self.run, self.trace = run, trace
        self._densities: dict[str, np.ndarray] = {}

    def of(self, unit: Unit) -> np.ndarray:
        if unit.sae:
            if unit.sae not in self._densities:
                self._densities[unit.sae] = self._of_features(unit.sae)
            return self._densities[unit.sae]
        place = self.trace.layer_index(unit.layer)
        n = self.trace.layers[place].num_experts
        wrong = [m for m in unit.members if not 0 <= m < n]
        if wrong:
            raise MoeProbeError(f"layer {unit.layer} has no expert {wrong[0]}", f"it has {n}", f"0 to {n - 1}")
        return np.asarray(self.trace.usage().selections[:, place, :n].sum(0))

    def _of_features(self, name: str) -> np.ndarray:
        from moe_probe.features.firing import fire
        from moe_probe.sae import load_sae
        from moe_probe.sae.store import readers

        if (self.run / "results" / "features.parquet").exists():
            table = Result.load(self.run / "results", "features").table
            mine = table[table["sae"] == name].sort_values("feature")
            if len(mine):
                return mine["density"].to_numpy(dtype=float)
        sae = load_sae(self.run / "sae" / name)
        _, held_out = readers(self.trace, sae, held_out_documents(self.trace, seed=_held_out_seed(self.run)))
        return fire(sae, held_out).counts


def update_verdicts(run: Path) -> Result | None:
    """Make the run's verdicts anew with whatever features and causes have said so far, and save them.

    Returns
    -------
    Result or None
        None where the run has no verdicts yet.
    """
    from moe_probe.studies.verdicts.evidence import complete_verdicts

    folder = run / "results"

    def known(name: str) -> Result | None:
        return Result.load(folder, name) if (folder / f"{name}.parquet").exists() else None

    verdicts = known("usage_verdicts")
    if verdicts is None:
        return None
    done = complete_verdicts(
        replace(verdicts, name="verdicts"),
        carriers=known("carriers"),
        features=known("features"),
        ablation=known("ablation"),
    )
    done.save(folder)
    return done


def summary_lines(result: Result) -> Iterable[str]:
    """What a reader wants first: every unit on its own topics."""
    table: pd.DataFrame = result.table
    own = table[table["held_to"]]
    for row in (own if len(own) else table.groupby("unit", sort=False).head(1)).itertuples():
        fact = row._asdict()
        controls = "no controls" if np.isnan(row.control_nats) else f"controls {row.control_nats:+.4f}"
        said = confirmation(fact)
        yield f"{row.topic}: without {row.unit} {rise_text(fact)}, {controls}{'' if said == NOT_CONFIRMED else f', {said}'}"
