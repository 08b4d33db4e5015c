"""References to experts, groups of experts and SAE features, as tables and options write them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["expert", "group", "feature"]


@dataclass(frozen=True)
class UnitRef:
    """One expert, a group of experts of one layer, or features of one SAE.

    Attributes
    ----------
    members : tuple of int
        Experts of the layer, or features of the SAE, in the order in which they are named.
    layer : int or None
        Layer of the experts; None for features, whose SAE determines it.
    sae : str
        Folder of the features' SAE below ``RUN/sae``, such as ``layer_05/width_01024``; "" for experts.

    Raises
    ------
    ValueError
        For no member or a negative one; and unless exactly one of `layer` and `sae` is given.

    Examples
    --------
    >>> UnitRef.parse("5:13+4")
    UnitRef(members=(13, 4), layer=5, sae='')
    >>> UnitRef.parse("layer_05/width_01024:334").kind
    'feature'
    """

    members: tuple[int, ...]
    layer: int | None = None
    sae: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no text form."""
        if not self.members or min(self.members) < 0 or (self.layer is None) != bool(self.sae):
            raise ValueError(f"a unit has members, and either a layer or an SAE: {self!r}")
        if self.sae.isdecimal() or (self.layer is not None and self.layer < 0):
            raise ValueError(f"neither an SAE nor a layer: {self!r}")

    @classmethod
    def parse(cls, text: str) -> UnitRef:
        """Read ``LAYER:EXPERT``, ``LAYER:EXPERT+EXPERT`` or ``SAE:FEATURE``; the inverse of ``str``.

        Raises
        ------
        ValueError
            When the text has none of these forms.
        """
        source, colon, members = text.rpartition(":")
        if not colon or not source:
            raise ValueError(f"'{text}' names neither a layer nor an SAE")
        numbers = parse_members(members)
        return cls(numbers, layer=int(source)) if source.isdecimal() else cls(numbers, sae=source)

    def __str__(self) -> str:
        """Text that `parse` reads."""
        return f"{self.sae or self.layer}:{format_members(self.members)}"

    @property
    def kind(self) -> UnitKind:
        """``feature`` also for several features of one SAE."""
        return "feature" if self.sae else "expert" if len(self.members) == 1 else "group"

    @property
    def title(self) -> str:
        """Name in tables and sentences: ``layer 5 experts 13+4``, ``layer_05/width_01024 feature 334``."""
        source, noun = (self.sae, "feature") if self.sae else (f"layer {self.layer}", "expert")
        return f"{source} {noun}{'s' * (len(self.members) > 1)} {format_members(self.members)}"


def parse_members(text: object) -> tuple[int, ...]:
    """Read the numbers of ``3+7`` or ``3, 7``; none from an empty text.

    Raises
    ------
    ValueError
        When a part is no number.
    """
    parts = str(text).replace(",", "+").split("+") if str(text) else []
    return tuple(int(part) for part in parts)


def format_members(members: Iterable[int]) -> str:
    """Write numbers as ``3+7``: the inverse of `parse_members`."""
    return "+".join(map(str, members))
