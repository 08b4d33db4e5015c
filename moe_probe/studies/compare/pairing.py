"""Groups of documents of two runs, paired where the runs share documents, and resampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import Usage
from moe_probe.core.stats import GroupUsage, Resamples, group_usage, labelled_documents
from moe_probe.studies.compare.compared_run import ComparedRun, SharedDocuments, shared_documents

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Pairing:
    """Groups of documents of two runs.

    Attributes
    ----------
    usage : pair of Usage
        Of the documents compared.
    groups : pair of GroupUsage
        Their groups; row i of one is row i of the other where they are paired.
    paired : bool
    shared : SharedDocuments
    whole : pair of bool
        Whether all labelled documents of a run take part, so that its stored results are about the same documents.
    topics : tuple of str
        Labels that both runs have; empty where the runs differ in the label column itself.
    notes : tuple of str
        What was left out, in sentences.
    """

    usage: tuple[Usage, Usage]
    groups: tuple[GroupUsage, GroupUsage]
    paired: bool
    shared: SharedDocuments
    whole: tuple[bool, bool]
    topics: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """How intervals of differences are made, in words."""
        a, b = (len(g.groups) for g in self.groups)
        return f"paired bootstrap, {a:,} groups" if self.paired else f"independent bootstrap, {a:,} and {b:,} groups"


def pair_runs(a: ComparedRun, b: ComparedRun) -> Pairing:
    """Bring the documents of two runs together.

    Parameters
    ----------
    a, b : ComparedRun

    Returns
    -------
    Pairing

    Raises
    ------
    MoeProbeError
        When a run has no trace, they have fewer than two labels in common, or differ in the label column without sharing
        documents.
    """
    if a.usage is None or b.usage is None:
        raise MoeProbeError(
            f"documents of {a.name} and {b.name} cannot be compared",
            "one of the two has no trace",
            "keep the trace in the run's folder",
        )
    return _Pairer(a, b, a.usage, b.usage).pair()


class _Pairer:
    """Two runs on their way to a `Pairing`; `notes` collects what is left out."""

    def __init__(self, a: ComparedRun, b: ComparedRun, usage_a: Usage, usage_b: Usage) -> None:
        self.a, self.b, self.usage_a, self.usage_b = a, b, usage_a, usage_b
        self.shared = shared_documents(a, b)
        self.shared_a = usage_a.documents.iloc[self.shared.rows_a]
        self.shared_b = usage_b.documents.iloc[self.shared.rows_b]
        self.notes: list[str] = []

    def pair(self) -> Pairing:
        a, b, shared = self.a, self.b, self.shared
        if a.label != b.label:
            if not shared.enough:
                raise MoeProbeError(
                    f"{a.label} and {b.label} cannot be compared",
                    f"two labels are compared on the same documents, and {a.name} and {b.name} share too few",
                    "two --by on one run",
                )
            return self._pairing(self._labelled_in_both(), ())
        topics = self._common_topics()
        if shared.enough:
            return self._pairing(self._of_equal_label(topics), topics)
        if len(shared.rows_a):
            self.notes.append(
                f"{a.name} and {b.name} share {len(shared.rows_a)} documents only: they are treated as independent."
            )
        usage = (_of_topics(self.usage_a, a.label, topics), _of_topics(self.usage_b, b.label, topics))
        return self._pairing(usage, topics, paired=False)

    def _pairing(self, usage: tuple[Usage, Usage], topics: tuple[str, ...], *, paired: bool = True) -> Pairing:
        groups = (group_usage(usage[0], label=self.a.label), group_usage(usage[1], label=self.b.label))
        if paired and groups[0].groups != groups[1].groups:  # a document without tokens in one of the two
            common = sorted(set(groups[0].groups) & set(groups[1].groups))
            groups = (_only(groups[0], common), _only(groups[1], common))
        whole = (
            len(_labels(self.usage_a, self.a.label)) == len(usage[0].documents),
            len(_labels(self.usage_b, self.b.label)) == len(usage[1].documents),
        )
        return Pairing(usage, groups, paired, self.shared, whole, topics, tuple(self.notes))

    def _common_topics(self) -> tuple[str, ...]:
        a, b = self.a, self.b
        topics_of = [set(_labels(usage, run.label)) for run, usage in ((a, self.usage_a), (b, self.usage_b))]
        topics = tuple(sorted(topics_of[0] & topics_of[1]))
        if len(topics) < 2:
            what = f"the only {a.label} in common is '{topics[0]}'" if topics else f"they have no {a.label} in common"
            hint = f"runs with two {a.label}s in common or more"
            raise MoeProbeError(f"{a.name} and {b.name} cannot be compared", what, hint)
        for run, own in zip((a, b), topics_of, strict=True):
            if len(own) > len(topics):
                self.notes.append(
                    f"{len(own) - len(topics)} of {len(own)} {run.label}s of {run.name} are not in the other and were "
                    "left out: lifts are against the mean over the rest."
                )
        return topics

    def _of_equal_label(self, topics: tuple[str, ...]) -> tuple[Usage, Usage]:
        a, b, shared = self.a, self.b, self.shared
        labels_a, labels_b = (d[a.label].fillna("").astype(str).to_numpy() for d in (self.shared_a, self.shared_b))
        differ = int((labels_a != labels_b).sum())
        if differ:
            self.notes.append(f"{differ} shared documents have another {a.label} in {b.name} and were left out.")
        not_shared = [len(usage.documents) - len(shared.rows_a) for usage in (self.usage_a, self.usage_b)]
        if any(not_shared):
            self.notes.append(
                f"{not_shared[0]:,} documents of {a.name} and {not_shared[1]:,} of {b.name} are not shared and were left out."
            )
        keep = (labels_a == labels_b) & np.isin(labels_a, topics)
        return self._shared_usage(keep, self.shared_a[keep])

    def _labelled_in_both(self) -> tuple[Usage, Usage]:
        documents = self.shared_a.copy()
        keep_a, _, _ = labelled_documents(documents, label=self.a.label)
        keep_b, labels_b, _ = labelled_documents(self.shared_b, label=self.b.label)
        documents[self.b.label] = labels_b
        keep = keep_a & keep_b
        if not keep.all():
            self.notes.append(f"{int((~keep).sum())} documents lack one of the labels and were left out.")
        return self._shared_usage(keep, documents[keep])

    def _shared_usage(self, keep: np.ndarray, documents: pd.DataFrame) -> tuple[Usage, Usage]:
        """Usage of some shared documents; the groups of one run serve both: resampling draws the same on either side."""
        rows = self.shared.rows_a[keep], self.shared.rows_b[keep]
        return _rows(self.usage_a, rows[0], documents), _rows(self.usage_b, rows[1], documents)


def _labels(usage: Usage, label: str) -> np.ndarray:
    """Labels of the labelled documents."""
    keep, labels, _ = labelled_documents(usage.documents, label=label)
    return np.asarray(labels[keep])


def _only(groups: GroupUsage, names: list[str]) -> GroupUsage:
    index = {name: i for i, name in enumerate(groups.groups)}
    return groups.select(np.array([index[n] for n in names]))


def _of_topics(usage: Usage, label: str, topics: tuple[str, ...]) -> Usage:
    rows = np.flatnonzero(usage.documents[label].fillna("").astype(str).isin(topics).to_numpy())
    return _rows(usage, rows, usage.documents.iloc[rows])


def _rows(usage: Usage, rows: np.ndarray, documents: pd.DataFrame) -> Usage:
    return usage.select(rows, documents.reset_index(drop=True))


def resample(pairing: Pairing, *, n: int, seed: int) -> tuple[Resamples, Resamples]:
    """Draw groups within topics: one draw for both runs where they are paired, one each where they are not.

    Parameters
    ----------
    pairing : Pairing
    n : int
        Resamples.
    seed : int

    Returns
    -------
    tuple of Resamples
        Of the first run and of the second.
    """
    a, b = pairing.groups
    if not pairing.paired:
        return Resamples(a.topic, n=n, seed=[seed, 0]), Resamples(b.topic, n=n, seed=[seed, 1])
    cells = a.topic * (int(b.topic.max()) + 1) + b.topic
    if np.unique(cells, return_counts=True)[1].min() < 4:  # two labels that cut too finely: keep the first one's sizes
        cells = a.topic
    both = Resamples(cells, n=n, seed=[seed, 0])
    return both, both
