"""Units that are named to be watched or shaded, and their values on the tokens of a call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.text import some_of

if TYPE_CHECKING:
    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.run_tables import RunTables

_EXPERT = re.compile(r"\d+:\d+")


class KnownUnits(NamedTuple):
    """What can be named in a run.

    Attributes
    ----------
    n_experts : mapping of int to int
        Experts of each MoE layer.
    widths : mapping of str to int
        Latents of each SAE, by folder.
    """

    n_experts: Mapping[int, int]
    widths: Mapping[str, int]


@dataclass(frozen=True)
class Watched:
    """A feature, an expert, or the units of a topic.

    Attributes
    ----------
    name : str
        As it was asked for.
    kind : {"feature", "expert", "topic"}
    experts : tuple of (int, int)
        Layers and experts.
    features : tuple of (str, int)
        SAE folders and features.
    topic : str
        Topic that it stands for, "" for none: texts about this topic do not set its threshold.
    """

    name: str
    kind: str
    experts: tuple[tuple[int, int], ...] = ()
    features: tuple[tuple[str, int], ...] = ()
    topic: str = ""

    @property
    def features_by_sae(self) -> dict[str, list[int]]:
        """Features of each SAE folder."""
        out: dict[str, list[int]] = {}
        for sae, feature in self.features:
            out.setdefault(sae, []).append(feature)
        return out


def parse_unit(text: str, units: KnownUnits, *, option: str) -> Watched | None:
    """Read ``FOLDER:FEATURE`` (layer_05/width_01024:334) or ``LAYER:EXPERT`` (5:13).

    Parameters
    ----------
    text : str
    units : KnownUnits
    option : str
        Named in messages.

    Returns
    -------
    Watched or None
        None where the text has neither form.

    Raises
    ------
    UsageError
        When it has that form and names a unit that does not exist.
    """
    if _EXPERT.fullmatch(text):
        layer, expert = map(int, text.split(":"))
        if layer not in units.n_experts:
            raise UsageError(
                f"{option} {text}: there is no MoE layer {layer}",
                f"the model has {some_of(units.n_experts, 12)}",
                "one of those",
            )
        if expert >= units.n_experts[layer]:
            raise UsageError(
                f"{option} {text}: layer {layer} has no expert {expert}",
                f"it has {units.n_experts[layer]}",
                f"{layer}:0 to {layer}:{units.n_experts[layer] - 1}",
            )
        return Watched(text, "expert", experts=((layer, expert),))
    sae, _, number = text.rpartition(":")
    if "/" not in sae:
        return None
    if sae not in units.widths:
        raise UsageError(
            f"{option} {text}: the run has no SAE {sae}",
            did_you_mean(sae, list(units.widths)) if units.widths else "it has none at all",
            "a folder below RUN/sae",
        )
    width = units.widths[sae]
    if not number.isdigit() or int(number) >= width:
        raise UsageError(
            f"{option} {text}: there is no feature {number}", f"{sae} has {width:,}", f"{sae}:0 to {sae}:{width - 1}"
        )
    return Watched(text, "feature", features=((sae, int(number)),))


def parse_watch(text: str, tables: RunTables, units: KnownUnits, shown: Mapping[str, int]) -> Watched:
    """Read what is to be watched: a unit, as `parse_unit` does, or a topic of the run.

    Parameters
    ----------
    text : str
    tables : RunTables
    units : KnownUnits
    shown : mapping of str to int
        Latents of the SAEs whose features stand for a topic, by folder.

    Returns
    -------
    Watched

    Raises
    ------
    UsageError
        When it names nothing that exists, or a topic that no unit of the run stands for.
    """
    unit = parse_unit(text, units, option="--watch")
    if unit is not None:
        return replace(unit, topic=str(tables.experts.loc[unit.experts[0], "topic"])) if unit.experts else unit
    if text not in tables.topics:
        raise UsageError(
            f"--watch {text} is no topic of the run",
            did_you_mean(text, list(tables.topics)),
            "a topic, LAYER:EXPERT, or FOLDER:FEATURE as layer_05/width_01024:334",
        )
    of_topic = tables.units_of(text, shown)
    features = tuple((sae, feature) for sae, feature in of_topic.features if sae in units.widths)
    if not features and not of_topic.experts:
        raise UsageError(
            f"--watch {text}: no unit of the run stands for it",
            "its verdict names no expert, and no feature of these SAEs has this topic",
            "another SAE (--sae), or a unit by its number",
        )
    return Watched(text, "topic", of_topic.experts, features, topic=text)


def active_units(watched: Watched, call: Call) -> np.ndarray:
    """Count the units that are active on every token.

    Parameters
    ----------
    watched : Watched
    call : Call

    Returns
    -------
    ndarray of int64, shape (n_tokens,)
        0 on special tokens.
    """
    count = np.zeros(len(call.ids), dtype=np.int64)
    for sae, features in watched.features_by_sae.items():
        latents = call.latents[sae]
        np.add.at(count, latents.token[np.isin(latents.feature, features)], 1)
    for layer, expert in watched.experts:
        count += (call.experts[:, call.layers.index(layer)] == expert).any(1)
    return np.where(call.special, 0, count)


def unit_values(watched: Watched, call: Call) -> np.ndarray:
    """Activation of a feature, or gate weight of an expert, on every token.

    Parameters
    ----------
    watched : Watched
    call : Call

    Returns
    -------
    ndarray of float64, shape (n_tokens,)
        0 where the unit is silent, and on special tokens.
    """
    out = np.zeros(len(call.ids), dtype=np.float64)
    for sae, feature in watched.features:
        tokens, values = call.latents[sae].of(feature)
        out[tokens] = np.maximum(out[tokens], values)
    for layer, expert in watched.experts:
        layer_index = call.layers.index(layer)
        chosen = call.experts[:, layer_index] == expert
        out = np.maximum(out, np.where(chosen, call.weights[:, layer_index], 0).max(1))
    return np.where(call.special, 0, out)


def shade_levels(values: np.ndarray) -> np.ndarray:
    """Values as shades 0 (none) to 4, by quarters of the largest value."""
    top = float(values.max(initial=0.0))
    if top <= 0:
        return np.zeros(len(values), dtype=np.int64)
    return np.where(values > 0, np.clip(np.ceil(4 * values / top), 1, 4), 0).astype(np.int64)
