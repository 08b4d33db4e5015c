"""Controls: units of the same kind and load, to compare a knock-out with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.studies.ablation.units import Unit

if TYPE_CHECKING:
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.ablation.settings import AblationSettings


def controls_of(
    run: RunDirectory, units: Sequence[Unit], held_out: np.ndarray, settings: AblationSettings
) -> dict[Unit, list[Unit]]:
    """Draw controls for every unit; members of other units that were put forward for the same topics are none.

    Parameters
    ----------
    run : RunDirectory
    units : sequence of Unit
    held_out : ndarray of bool, shape (n_documents,)
        Documents on which loads of features are counted, where the run has not measured them.
    settings : AblationSettings
        Its number of controls and seed are used.

    Returns
    -------
    dict of Unit to list of Unit

    Raises
    ------
    MoeProbeError
        When a unit names an expert that its layer does not have.
    """

    @lru_cache(maxsize=1)  # features come SAE by SAE
    def feature_loads(sae: str) -> np.ndarray:
        return _feature_loads(run, sae, held_out)

    out = {}
    for unit in units:
        load = feature_loads(unit.sae) if unit.sae else _expert_loads(run, unit)
        rivals = (
            other
            for other in units
            if (other.layer, other.sae) == (unit.layer, unit.sae) and set(other.claimed_topics) & set(unit.claimed_topics)
        )
        avoid = frozenset(member for rival in rivals for member in rival.members)
        out[unit] = matched_controls(unit, load, n=settings.controls, avoid=avoid, seed=settings.seed)
    return out


def _expert_loads(run: RunDirectory, unit: Unit) -> np.ndarray:
    """Count the selections of every expert of the unit's layer, shape (n_experts,)."""
    layer_index = run.layer_index(unit.layer)
    n = run.layers[layer_index].num_experts
    unknown = [m for m in unit.members if not 0 <= m < n]
    if unknown:
        raise MoeProbeError(f"layer {unit.layer} has no expert {unknown[0]}", f"it has {n}", f"0 to {n - 1}")
    usage = run.usage()
    summed = usage.summed(np.zeros(len(usage.documents), dtype=np.int64), 1)[0]
    return np.asarray(summed[usage.columns[layer_index]].astype(np.int64))


def _feature_loads(run: RunDirectory, name: str, held_out: np.ndarray) -> np.ndarray:
    """How often every feature of an SAE fires, shape (n_features,): densities where they were measured, else counts."""
    from moe_probe.features.firing import fire
    from moe_probe.sae import load_sae
    from moe_probe.sae.store import readers

    if "features" in run.results:
        table = run.results["features"].table
        rows = table[table["sae"] == name].sort_values("feature")
        if len(rows):
            return np.asarray(rows["density"], dtype=float)
    sae = load_sae(run.sae_folder / name)
    return fire(sae, readers(run.trace, sae, held_out)[1]).counts


def matched_controls(
    unit: Unit, load: np.ndarray, *, n: int, avoid: frozenset[int] = frozenset(), seed: int = 0
) -> list[Unit]:
    """Draw units of the same kind and size whose members' loads are nearest to the unit's.

    Parameters
    ----------
    unit : Unit
    load : ndarray, shape (n_members,)
        Of all experts of the layer, or features of the SAE.
    n : int
        How many; drawn from the 3 n nearest.
    avoid : frozenset of int
        Members that are put forward for the same topics.
    seed : int

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
    return [unit._replace(members=members, claimed_topics=()) for members in drawn]
