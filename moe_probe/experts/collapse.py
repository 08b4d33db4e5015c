"""Layers whose router has collapsed: nearly all tokens go to one expert, or few experts do the work of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.core.schema import MoeLayer

#: Share of the tokens that one expert serves in a layer that is collapsed.
MOST = 0.8
#: Effective experts, as a share of all, below which a layer is collapsed.
NARROW = 0.25


def collapsed_layers(layers: Iterable[MoeLayer], results: Mapping[str, Result]) -> dict[int, str]:
    """Find layers whose router has collapsed.

    Parameters
    ----------
    layers : iterable of MoeLayer
        Of the trace.
    results : mapping of str to Result
        ``experts`` and ``layers`` are read, where they are there.

    Returns
    -------
    dict of int to str
        By layer what shows it, as the rest of "in layer 5, ...".
    """
    effective = results["layers"].table.set_index("layer")["effective_experts"] if "layers" in results else {}
    experts = results["experts"].table if "experts" in results else None
    found: dict[int, str] = {}
    for item in layers:
        own = None if experts is None else experts[experts["layer"] == item.layer]
        if own is not None and len(own):
            top = own.loc[own["load"].idxmax()]
            selected, even = float(top["load"]) * item.top_k, item.top_k / item.num_experts
            if selected >= MOST and even <= selected / 2:
                found[item.layer] = f"expert {int(top['expert'])} serves {min(selected, 1):.0%} of the tokens"
                continue
        if item.layer in effective and effective[item.layer] < NARROW * item.num_experts:
            found[item.layer] = f"{effective[item.layer]:.1f} of {item.num_experts} experts are effective"
    return found
