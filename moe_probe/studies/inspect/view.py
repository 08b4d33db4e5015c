"""Everything that is shown of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.pieces import Decoded, decode
from moe_probe.studies.inspect.watched import Watched, shade_levels, unit_values

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.inspect.alarms import Alarm
    from moe_probe.studies.inspect.overhead import Overhead
    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.topics import Guess


@dataclass(frozen=True)
class Inspection:
    """What one call of the model shows, beside what the run knows.

    Attributes
    ----------
    name : str
        Of the text: its number, or its file.
    model, fingerprint : str
        Of the weights that ran.
    call : Call
    experts : pandas.DataFrame
        As `moe_probe.studies.inspect.units.expert_table` gives it.
    features : mapping of str to pandas.DataFrame
        By SAE folder, as `moe_probe.studies.inspect.units.feature_table` gives it.
    guesses : tuple of Guess
        Topics of the text, from experts and from the features of each SAE.
    decoding : tuple of (int, float, float) or None
        Layer, accuracy and baseline of the run's own decoding of whole documents (``results/layers``).
    alarms : tuple of Alarm
        One for everything watched, whether it fired or not.
    shade : Watched or None
        The unit that tokens are shaded by.
    overhead : Overhead or None
        None where it was not measured.
    notes : tuple of str
        What weakens the view, in sentences: forced weights, missing tables.
    """

    name: str
    model: str
    fingerprint: str
    call: Call
    experts: pd.DataFrame
    features: Mapping[str, pd.DataFrame]
    guesses: tuple[Guess, ...]
    decoding: tuple[int, float, float] | None
    alarms: tuple[Alarm, ...]
    shade: Watched | None
    overhead: Overhead | None
    notes: tuple[str, ...]

    @property
    def fired(self) -> tuple[Alarm, ...]:
        """Alarms that went off."""
        return tuple(alarm for alarm in self.alarms if alarm.fired)

    @cached_property
    def decoded(self) -> Decoded:
        """The text of the tokens, and which of its characters each covers."""
        return decode(self.call.strings)

    def shades(self, unit: Watched | None = None) -> np.ndarray:
        """Shade of every token, 0 to 4, by the unit given or the one chosen; shape (n_tokens,)."""
        unit = unit or self.shade
        if unit is None:
            return np.zeros(len(self.call.ids), dtype=np.int64)
        return shade_levels(unit_values(unit, self.call))

    def fires_on(self, sae: str, feature: int) -> list[tuple[int, float]]:
        """List the tokens on which a feature fires, with its activations, strongest first.

        Parameters
        ----------
        sae : str
            Folder of the SAE.
        feature : int

        Returns
        -------
        list of (int, float)
        """
        tokens, values = self.call.latents[sae].of(feature)
        order = np.argsort(-values, kind="stable")
        return [(int(tokens[i]), float(values[i])) for i in order]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; tokens are numbered from 0."""
        call = self.call
        tokens = [
            {"id": int(i), "text": s, "special": bool(p), "generated": bool(g)}
            for i, s, p, g in zip(call.ids, call.strings, call.special, call.generated, strict=True)
        ]
        features = {
            sae: [row | {"fires_on": self.fires_on(sae, int(row["feature"]))} for row in table.to_dict("records")]
            for sae, table in self.features.items()
        }
        decoding = (
            None if self.decoding is None else dict(zip(("layer", "accuracy", "baseline"), self.decoding, strict=True))
        )
        return {
            "name": self.name,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
            "windows": call.windows,
            "tokens": tokens,
            "experts": self.experts.to_dict("records"),
            "features": features,
            "topics": [guess.as_dict() for guess in self.guesses],
            "whole_documents_decoded": decoding,
            "watched": [alarm.as_dict() for alarm in self.alarms],
            "overhead": None if self.overhead is None else asdict(self.overhead),
        }
