"""Units that are named to be watched or shaded, and whether they fire in a call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.text import some_of

if TYPE_CHECKING:
    from moe_probe.studies.inspect.known import Known
    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.reference import Reference

#: Share of pieces of other text that may lie above a threshold which nobody gave.
FALSE_ALARMS = 0.05
#: Held-out pieces that such a threshold needs.
_LEAST = 20
_NUMBERS = re.compile(r"\d+:\d+")


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
    """

    name: str
    kind: str
    experts: tuple[tuple[int, int], ...] = ()
    features: tuple[tuple[str, int], ...] = ()
    #: Topic that it stands for, "" for none: texts about it do not set its threshold.
    about: str = ""


@dataclass(frozen=True)
class Alarm:
    """What a watched unit did in a call.

    Attributes
    ----------
    watched : Watched
    value : float
        Feature: its largest activation. Expert: share of the text tokens that chose it. Topic: units active on a text
        token, on average (a token on which three are counts three).
    threshold : float
    fired : bool
        The value is above the threshold.
    tokens : tuple of int
        Feature: tokens above the threshold, strongest first. Expert, topic: tokens on which it is active, those of most
        units first.
    says : str
        Where the threshold comes from.
    """

    watched: Watched
    value: float
    threshold: float
    fired: bool
    tokens: tuple[int, ...]
    says: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "watched": self.watched.name,
            "kind": self.watched.kind,
            "fired": self.fired,
            "value": self.value,
            "threshold": self.threshold,
            "threshold_from": self.says,
            "tokens": list(self.tokens),
            "experts": [f"{layer}:{expert}" for layer, expert in self.watched.experts],
            "features": [f"{sae}:{feature}" for sae, feature in self.watched.features],
        }


def parse_unit(text: str, widths: Mapping[str, int], experts: Mapping[int, int], *, option: str) -> Watched | None:
    """Read ``FOLDER:FEATURE`` (layer_05/width_01024:334) or ``LAYER:EXPERT`` (5:13); None where it is neither.

    Parameters
    ----------
    widths : mapping of str to int
        Latents of each SAE of the run, by folder.
    experts : mapping of int to int
        Experts of each MoE layer.
    option : str
        Named in messages.

    Raises
    ------
    UsageError
        When it has that form and names what is not there.
    """
    if _NUMBERS.fullmatch(text):
        layer, expert = map(int, text.split(":"))
        if layer not in experts:
            raise UsageError(
                f"{option} {text}: there is no MoE layer {layer}", f"the model has {some_of(experts, 12)}", "one of those"
            )
        if expert >= experts[layer]:
            raise UsageError(
                f"{option} {text}: layer {layer} has no expert {expert}",
                f"it has {experts[layer]}",
                f"{layer}:0 to {layer}:{experts[layer] - 1}",
            )
        return Watched(text, "expert", experts=((layer, expert),))
    sae, _, number = text.rpartition(":")
    if "/" not in sae:
        return None
    if sae not in widths:
        raise UsageError(
            f"{option} {text}: the run has no SAE {sae}",
            did_you_mean(sae, list(widths)) if widths else "it has none at all",
            "a folder below RUN/sae",
        )
    if not number.isdigit() or int(number) >= widths[sae]:
        raise UsageError(
            f"{option} {text}: there is no feature {number}",
            f"{sae} has {widths[sae]:,}",
            f"{sae}:0 to {sae}:{widths[sae] - 1}",
        )
    return Watched(text, "feature", features=((sae, int(number)),))


def parse_watch(
    text: str,
    known: Known,
    widths: Mapping[str, int],
    shown: Mapping[str, int],
    experts: Mapping[int, int],
) -> Watched:
    """Read what is to be watched: a unit, as `parse_unit` does, or a topic of the run.

    Parameters
    ----------
    widths, shown : mapping of str to int
        Latents of all SAEs of the run, and of those whose features stand for a topic.

    Raises
    ------
    UsageError
        When it names nothing that is there, or a topic that no unit of the run stands for.
    """
    unit = parse_unit(text, widths, experts, option="--watch")
    if unit is not None:
        return replace(unit, about=str(known.experts.loc[unit.experts[0], "topic"])) if unit.experts else unit
    if text not in known.topics:
        raise UsageError(
            f"--watch {text} is no topic of the run",
            did_you_mean(text, list(known.topics)),
            "a topic, LAYER:EXPERT, or FOLDER:FEATURE as layer_05/width_01024:334",
        )
    units = known.units_of(text, shown)
    features = tuple((sae, f) for sae, f in units.features if sae in widths)
    if not features and not units.experts:
        raise UsageError(
            f"--watch {text}: no unit of the run stands for it",
            "its verdict names no expert, and no feature of these SAEs has it for its topic",
            "another SAE (--sae), or a unit by its number",
        )
    return Watched(text, "topic", units.experts, features, about=text)


def check(watched: Watched, call: Call, *, threshold: float | None, reference: Reference | None) -> Alarm:
    """Say whether a watched unit fires: whether its value is above the threshold.

    Without a threshold a feature fires wherever it is active (threshold 0), and an expert or topic where its value is
    above what 5 % of the beginnings of held-out documents, as long as the text, exceed: of those about other topics than
    the one watched, or than the expert's own in the run where it has one.

    Raises
    ------
    UsageError
        When a threshold is needed and the run does not keep enough tokens to take it from.
    """
    says = "given" if threshold is not None else "any activation"
    if watched.kind == "feature":
        threshold = 0.0 if threshold is None else threshold
        strength = unit_values(watched, call)
        tokens = np.flatnonzero(strength > threshold)
        value = float(strength.max(initial=0.0))
    else:
        if threshold is None:
            threshold, says = _threshold(watched, reference)
        strength = active_units(watched, call)
        tokens = np.flatnonzero(strength)
        value = float(strength.sum() / max(len(call.text), 1))
    tokens = tokens[np.argsort(-strength[tokens], kind="stable")]
    return Alarm(watched, value, threshold, value > threshold, tuple(tokens.tolist()), says)


def _threshold(watched: Watched, reference: Reference | None) -> tuple[float, str]:
    pieces = None if reference is None else reference.held_pieces
    unknown = reference is None or any(sae not in reference.saes for sae, _ in watched.features)
    if reference is None or pieces is None or unknown or len(pieces.rows) < _LEAST:
        raise UsageError(
            f"--watch {watched.name} needs a threshold",
            f"the run keeps fewer than {_LEAST} held-out texts as long as this one to take it from",
            "--threshold 0.5: for an expert a share of the text's tokens, for a topic units a token",
        )
    active = reference.active(watched)
    others = pieces.topic != watched.about
    level = float(np.quantile(active[others], 1 - FALSE_ALARMS, method="higher")) if others.any() else 0.0
    which = f"held-out texts not about {watched.about}" if watched.about else "held-out texts"
    own = "" if others.all() else f", {(active[~others] > level).mean():.0%} of those about it do"
    return level, (
        f"{(active[others] > level).mean():.0%} of {others.sum():,} {which}, {reference.length} tokens each, lie "
        f"above it{own}"
    )


def active_units(watched: Watched, call: Call) -> np.ndarray:
    """How many of the units are active on every token, shape (n_tokens,); 0 on special ones."""
    count = np.zeros(len(call.ids), dtype=np.int64)
    for sae in {name for name, _ in watched.features}:
        latents, mine = call.latents[sae], [f for name, f in watched.features if name == sae]
        np.add.at(count, latents.token[np.isin(latents.feature, mine)], 1)
    for layer, expert in watched.experts:
        count += (call.experts[:, call.layers.index(layer)] == expert).any(1)
    return np.where(call.special, 0, count)


def unit_values(watched: Watched, call: Call) -> np.ndarray:
    """Activation of a feature, or gate weight of an expert, on every token; 0 where it is silent. Shape (n_tokens,)."""
    out = np.zeros(len(call.ids), dtype=np.float64)
    for sae, feature in watched.features:
        tokens, values = call.latents[sae].of(feature)
        out[tokens] = np.maximum(out[tokens], values)
    for layer, expert in watched.experts:
        place = call.layers.index(layer)
        chosen = call.experts[:, place] == expert
        out = np.maximum(out, np.where(chosen, call.weights[:, place], 0).max(1))
    return np.where(call.special, 0, out)


def strengths(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Values as shades 0 (none) to 4, by quarters of the largest value (of the call, or as given)."""
    top = max(float(values.max(initial=0.0)), largest or 0.0)
    if top <= 0:
        return np.zeros(len(values), dtype=np.int64)
    return np.where(values > 0, np.clip(np.ceil(4 * values / top), 1, 4), 0).astype(np.int64)
