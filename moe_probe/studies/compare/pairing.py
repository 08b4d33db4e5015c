"""What is compared with what: groups of documents of two sides, paired where they share documents, and resampled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import GroupUsage, Resamples, group_usage, labelled_documents
from moe_probe.studies.compare.sides import Shared, Side, shared_documents

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage


@dataclass(frozen=True)
class Pairing:
    """Groups of documents of two sides.

    Attributes
    ----------
    usage : pair of Usage
        Of the documents that are compared.
    groups : pair of GroupUsage
        Their groups; row i of one is row i of the other where they are paired.
    paired : bool
    shared : Shared
    whole : pair of bool
        Whether all labelled documents of a side take part, so that its stored results are about the same documents.
    topics : tuple of str
        Labels that both sides have; empty where the sides differ in the label itself.
    notes : tuple of str
        What was left out, in sentences.
    """

    usage: tuple[Usage, Usage]
    groups: tuple[GroupUsage, GroupUsage]
    paired: bool
    shared: Shared
    whole: tuple[bool, bool]
    topics: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """How intervals of differences are made, in words."""
        a, b = (len(g.groups) for g in self.groups)
        return f"paired bootstrap, {a:,} groups" if self.paired else f"independent bootstrap, {a:,} and {b:,} groups"


def pair_sides(a: Side, b: Side) -> Pairing:
    """Bring the documents of two sides together.

    Raises
    ------
    MoeProbeError
        When a side has no trace, they have fewer than two labels in common, or differ in the label without sharing
        documents.
    """
    if a.usage is None or b.usage is None:
        raise MoeProbeError(
            f"documents of {a.name} and {b.name} cannot be compared",
            "one of the two has no trace",
            "keep the trace in the run's folder",
        )
    shared = shared_documents(a, b)
    notes: list[str] = []
    if a.label != b.label:
        if not shared.enough:
            raise MoeProbeError(
                f"{a.label} and {b.label} cannot be compared",
                f"two labels are held against each other on the same documents, and {a.name} and {b.name} share too few",
                "two --by on one run",
            )
        usage = _labelled_in_both(a, b, shared, notes)
        return _pairing(a, b, usage, shared, (), notes)
    topics = _common_topics(a, b, notes)
    if shared.enough:
        return _pairing(a, b, _paired_usage(a, b, shared, topics, notes), shared, topics, notes)
    if len(shared.rows_a):
        notes.append(f"{a.name} and {b.name} share {len(shared.rows_a)} documents only: they are treated as independent.")
    usage = (_of_topics(a.usage, a.label, topics), _of_topics(b.usage, b.label, topics))
    return _pairing(a, b, usage, shared, topics, notes, paired=False)


def _pairing(
    a: Side,
    b: Side,
    usage: tuple[Usage, Usage],
    shared: Shared,
    topics: tuple[str, ...],
    notes: list[str],
    *,
    paired: bool = True,
) -> Pairing:
    groups = (group_usage(usage[0], label=a.label), group_usage(usage[1], label=b.label))
    if paired and groups[0].groups != groups[1].groups:  # a document without tokens in one of the two
        common = sorted(set(groups[0].groups) & set(groups[1].groups))
        groups = (_only(groups[0], common), _only(groups[1], common))
    whole = tuple(_n_labelled(side) == len(u.documents) for side, u in zip((a, b), usage, strict=True))
    return Pairing(usage, groups, paired, shared, (whole[0], whole[1]), topics, tuple(notes))


def _only(groups: GroupUsage, names: list[str]) -> GroupUsage:
    place = {name: i for i, name in enumerate(groups.groups)}
    return groups.select(np.array([place[n] for n in names]))


def _n_labelled(side: Side) -> int:
    assert side.usage is not None
    return int(labelled_documents(side.usage.documents, label=side.label)[0].sum())


def _common_topics(a: Side, b: Side, notes: list[str]) -> tuple[str, ...]:
    assert a.usage is not None
    assert b.usage is not None
    have = []
    for side in (a, b):
        assert side.usage is not None
        keep, labels, _ = labelled_documents(side.usage.documents, label=side.label)
        have.append(set(labels[keep]))
    topics = tuple(sorted(have[0] & have[1]))
    if len(topics) < 2:
        what = f"the only {a.label} in common is '{topics[0]}'" if topics else f"they have no {a.label} in common"
        raise MoeProbeError(f"{a.name} and {b.name} cannot be compared", what, f"runs with two {a.label}s in common or more")
    for side, own in zip((a, b), have, strict=True):
        if len(own) > len(topics):
            notes.append(
                f"{len(own) - len(topics)} of {len(own)} {side.label}s of {side.name} are not in the other and were "
                "left out: lifts are against the mean over the rest."
            )
    return topics


def _paired_usage(a: Side, b: Side, shared: Shared, topics: tuple[str, ...], notes: list[str]) -> tuple[Usage, Usage]:
    assert a.usage is not None
    assert b.usage is not None
    ours, theirs = a.usage.documents.iloc[shared.rows_a], b.usage.documents.iloc[shared.rows_b]
    one, other = (d[a.label].fillna("").astype(str).to_numpy() for d in (ours, theirs))
    differ = int((one != other).sum())
    if differ:
        notes.append(f"{differ} shared documents have another {a.label} in {b.name} and were left out.")
    keep = (one == other) & np.isin(one, topics)
    left = len(a.usage.documents) - len(shared.rows_a), len(b.usage.documents) - len(shared.rows_b)
    if any(left):
        notes.append(f"{left[0]:,} documents of {a.name} and {left[1]:,} of {b.name} are not shared and were left out.")
    # the groups of one serve both: resampling must draw the same documents on either side
    names = ours[keep]
    return _rows(a.usage, shared.rows_a[keep], names), _rows(b.usage, shared.rows_b[keep], names)


def _labelled_in_both(a: Side, b: Side, shared: Shared, notes: list[str]) -> tuple[Usage, Usage]:
    assert a.usage is not None
    assert b.usage is not None
    documents = a.usage.documents.iloc[shared.rows_a].copy()
    theirs = b.usage.documents.iloc[shared.rows_b]
    keep_a, _, _ = labelled_documents(documents, label=a.label)
    keep_b, labels_b, _ = labelled_documents(theirs, label=b.label)
    documents[b.label] = labels_b
    keep = keep_a & keep_b
    if not keep.all():
        notes.append(f"{int((~keep).sum())} documents lack one of the labels and were left out.")
    names = documents[keep]
    return _rows(a.usage, shared.rows_a[keep], names), _rows(b.usage, shared.rows_b[keep], names)


def _of_topics(usage: Usage, label: str, topics: tuple[str, ...]) -> Usage:
    keep = usage.documents[label].fillna("").astype(str).isin(topics).to_numpy()
    rows = np.flatnonzero(keep)
    return _rows(usage, rows, usage.documents.iloc[rows])


def _rows(usage: Usage, rows: np.ndarray, documents: pd.DataFrame) -> Usage:
    mass = None if usage.gate_mass is None else usage.gate_mass[rows]
    return replace(usage, selections=usage.selections[rows], gate_mass=mass, documents=documents.reset_index(drop=True))


def resample(pairing: Pairing, *, n: int, seed: int) -> tuple[Resamples, Resamples]:
    """Draw groups within topics: one draw for both sides where they are paired, one each where they are not."""
    a, b = pairing.groups
    if not pairing.paired:
        return Resamples(a.topic, n=n, seed=[seed, 0]), Resamples(b.topic, n=n, seed=[seed, 1])
    cells = a.topic * (int(b.topic.max()) + 1) + b.topic
    if np.unique(cells, return_counts=True)[1].min() < 4:  # two labels that cut too finely: keep the first one's sizes
        cells = a.topic
    both = Resamples(cells, n=n, seed=[seed, 0])
    return both, both
