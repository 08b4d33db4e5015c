"""Firings of the dictionaries asked for last, as far as they fit in memory; those of others are encoded again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_probe.features.firing import Firings

#: Memory that firings kept for a second use may take. Without them a dictionary is encoded again, which changes nothing.
KEPT_BYTES = 2**28


class FiringCache:
    """Keeps firings up to so many bytes; those not asked for longest are dropped first.

    Parameters
    ----------
    memory_bytes : int, optional
        What is kept; `KEPT_BYTES` by default. Firings that are larger are returned and not kept.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._memory_bytes = memory_bytes
        self._kept: dict[Hashable, Firings] = {}

    def get(self, key: Hashable, encode: Callable[[], Firings]) -> Firings:
        """Return the firings of a key, encoded now where they are not kept.

        Parameters
        ----------
        key : hashable
            Names a dictionary and the tokens.
        encode : callable
            Makes the firings.

        Returns
        -------
        Firings
        """
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)  # the last one asked for
            return self._kept[key]
        firings, most = encode(), KEPT_BYTES if self._memory_bytes is None else self._memory_bytes
        if firings.nbytes <= most:
            while self._kept and firings.nbytes + sum(f.nbytes for f in self._kept.values()) > most:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = firings
        return firings

    def clear(self) -> None:
        """Drop all firings."""
        self._kept.clear()

    def __contains__(self, key: Hashable) -> bool:
        """Whether the firings of a key are kept."""
        return key in self._kept


#: Firings of the SAEs of runs: the stages of a run follow one another in one process, and all look at the same SAEs.
OF_RUNS = FiringCache()
