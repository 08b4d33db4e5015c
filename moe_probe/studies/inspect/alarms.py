"""Whether watched units fire in a call: whether their value is above a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import UsageError
from moe_probe.studies.inspect.watched import Watched, active_units, unit_values

if TYPE_CHECKING:
    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.reference import Reference

#: Share of pieces of other text that may lie above a threshold which nobody gave.
FALSE_ALARMS = 0.05
#: Held-out pieces that such a threshold needs.
_LEAST = 20


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
    threshold_from : str
        Where the threshold comes from.
    """

    watched: Watched
    value: float
    threshold: float
    fired: bool
    tokens: tuple[int, ...]
    threshold_from: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "watched": self.watched.name,
            "kind": self.watched.kind,
            "fired": self.fired,
            "value": self.value,
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "tokens": list(self.tokens),
            "experts": [f"{layer}:{expert}" for layer, expert in self.watched.experts],
            "features": [f"{sae}:{feature}" for sae, feature in self.watched.features],
        }


def check_alarm(watched: Watched, call: Call, *, threshold: float | None, reference: Reference | None) -> Alarm:
    """Say whether a watched unit fires: whether its value is above the threshold.

    Without a threshold a feature fires wherever it is active (threshold 0), and an expert or topic where its value is
    above what 5 % of the beginnings of held-out documents, as long as the text, exceed: of those about other topics than
    the one watched, or than the expert's own in the run where it has one.

    Parameters
    ----------
    watched : Watched
    call : Call
    threshold : float or None
        In the unit's own measure.
    reference : Reference or None
        The run's documents, from which a threshold is taken.

    Returns
    -------
    Alarm

    Raises
    ------
    UsageError
        When a threshold is needed and the run does not keep enough tokens to take it from.
    """
    source = "given" if threshold is not None else "any activation"
    if watched.kind == "feature":
        threshold = 0.0 if threshold is None else threshold
        strength = unit_values(watched, call)
        tokens = np.flatnonzero(strength > threshold)
        value = float(strength.max(initial=0.0))
    else:
        if threshold is None:
            threshold, source = _threshold(watched, reference)
        strength = active_units(watched, call)
        tokens = np.flatnonzero(strength)
        value = float(strength.sum() / max(len(call.text), 1))
    tokens = tokens[np.argsort(-strength[tokens], kind="stable")]
    return Alarm(watched, value, threshold, value > threshold, tuple(tokens.tolist()), source)


def _threshold(watched: Watched, reference: Reference | None) -> tuple[float, str]:
    unknown = reference is None or any(sae not in reference.saes for sae in watched.features_by_sae)
    if reference is None or unknown or len(reference.held_pieces.rows) < _LEAST:
        raise UsageError(
            f"--watch {watched.name} needs a threshold",
            f"the run keeps fewer than {_LEAST} held-out texts as long as this one to take it from",
            "--threshold 0.5: for an expert a share of the text's tokens, for a topic units a token",
        )
    active = reference.active(watched)
    others = reference.held_pieces.topic != watched.topic
    level = float(np.quantile(active[others], 1 - FALSE_ALARMS, method="higher")) if others.any() else 0.0
    which = f"held-out texts not about {watched.topic}" if watched.topic else "held-out texts"
    own = "" if others.all() else f", {(active[~others] > level).mean():.0%} of those about it do"
    return level, (
        f"{(active[others] > level).mean():.0%} of {others.sum():,} {which}, {reference.length} tokens each, lie "
        f"above it{own}"
    )
