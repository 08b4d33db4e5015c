"""Splits by group, stratified by topic, that do not change when documents are added elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moe_probe.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


DISCOVERY, REPLICATION = "discovery", "replication"


def stratified_split(topics: Sequence[str], groups: Sequence[str], *, shares: Mapping[str, float], seed: int) -> np.ndarray:
    """Put every document in one part, whole groups together, each topic divided by the shares.

    Within a topic the groups are ordered by a keyed hash of their name and cut at the cumulated
    shares, so the parts are as even as whole groups allow and do not depend on document order.

    Parameters
    ----------
    topics, groups : sequence of str, length n_documents
    shares : mapping of part name to share
        Shares are positive and add up to 1.
    seed : int
        Another seed gives another split.

    Returns
    -------
    ndarray of str, shape (n_documents,)
        Name of each document's part.

    Raises
    ------
    UsageError
        When the shares are not positive or do not add up to 1.
    """
    import numpy as np

    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        why, hint = "they must be positive and add up to 1", "for example train=0.8 test=0.2"
        raise UsageError(f"split shares {dict(shares)} are not shares", why, hint)
    by_topic: dict[str, dict[str, None]] = {}
    for topic, group in zip(topics, groups, strict=True):
        by_topic.setdefault(topic, {})[group] = None
    names, cuts = list(shares), np.cumsum(list(shares.values()))
    part_of: dict[str, str] = {}
    for topic, members in by_topic.items():
        ordered = sorted(members, key=lambda g: hashlib.sha256(f"{seed}\x00{topic}\x00{g}".encode()).digest())
        # +0.5: the middle of a group's slot decides, so two groups at shares of a half land one in each
        parts = np.searchsorted(cuts, (np.arange(len(ordered)) + 0.5) / len(ordered))
        part_of.update({group: names[min(k, len(names) - 1)] for group, k in zip(ordered, parts, strict=True)})
    return np.array([part_of[group] for group in groups], dtype=object)


def assign_halves(topics: Sequence[str], groups: Sequence[str], *, seed: int) -> np.ndarray:
    """Split groups into a discovery and a replication half, stratified by topic.

    Parameters
    ----------
    topics, groups : sequence of str, length n_documents
    seed : int
        Another seed gives another split.

    Returns
    -------
    ndarray of str, shape (n_documents,)
        ``"discovery"`` or ``"replication"``.
    """
    return stratified_split(topics, groups, shares={DISCOVERY: 0.5, REPLICATION: 0.5}, seed=seed)
