"""Knock-outs of the units of a run that could carry a topic."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from moe_probe.core.progress import Say
from moe_probe.core.results import Result
from moe_probe.core.text import figure, is_missing
from moe_probe.sae.held_out import held_out_documents
from moe_probe.studies.ablation.ablator import Ablator, knock_out
from moe_probe.studies.ablation.baseline import measure_baseline
from moe_probe.studies.ablation.controls import controls_of
from moe_probe.studies.ablation.settings import AblationSettings
from moe_probe.studies.ablation.units import Unit, verdict_units
from moe_probe.studies.verdicts import NOT_CONFIRMED, confirmation, rise_text

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae import Sae


def ablate_run(
    run: RunDirectory,
    loaded: LoadedModel,
    *,
    units: Sequence[Unit] = (),
    settings: AblationSettings | None = None,
    say: Say = print,
) -> Result:
    """Knock out experts, groups and features of a run and measure the loss on every topic.

    Parameters
    ----------
    run : RunDirectory
    loaded : LoadedModel
        The trace's model.
    units : sequence of Unit
        By default, for every topic, the expert (or group) of its verdict and, where matched, its best feature.
    settings : AblationSettings, optional
    say : callable
        Gets a sentence on each step.

    Returns
    -------
    Result
        ``ablation``, as `knock_out` gives it.

    Raises
    ------
    MoeProbeError
        When the model is not the trace's, or the run has neither verdicts nor units were named.
    """
    settings = settings or AblationSettings()
    started = time.monotonic()
    units = list(units) or verdict_units(run)
    held_out = held_out_documents(run, seed=_held_out_seed(run))
    baseline = measure_baseline(loaded, run, held_out, settings)
    say(
        f"losses of {len(baseline.losses)} held-out documents, {sum(map(len, baseline.sample.ids)):,} tokens: "
        f"{baseline.losses.mean():.3f} nats; {len(units)} units to knock out"
    )

    @lru_cache(maxsize=1)  # features come SAE by SAE
    def load_named(name: str) -> Sae:
        from moe_probe.sae import load_sae

        return load_sae(run.sae_folder / name)

    controls = controls_of(run, units, held_out, settings)
    result = knock_out(Ablator(baseline, settings, load_named), units, controls)
    say(f"{len(units)} units and their controls in {time.monotonic() - started:.1f} s")
    return result


def _held_out_seed(run: RunDirectory) -> int:
    from moe_probe.sae import read_training
    from moe_probe.sae.store import saes_of

    return read_training(saes_of(run.path)[0]).held_out_seed if run.sae_folder.exists() else 0


def summary_lines(result: Result) -> Iterator[str]:
    """Say for every unit what happens on the topics for which it was put forward."""
    table = result.table
    claimed = table[table["held_to"]]
    for row in (claimed if len(claimed) else table.groupby("unit", sort=False).head(1)).to_dict("records"):
        controls = "no controls" if is_missing(row["control_nats"]) else f"controls {figure(row['control_nats'], '+.4f')}"
        answer = confirmation(row)
        shown = "" if answer == NOT_CONFIRMED else f", {answer}"
        yield f"{row['topic']}: without {row['unit']} {rise_text(row)}, {controls}{shown}"
