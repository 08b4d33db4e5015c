"""Firing rates of features in groups of documents with their topics and subtopics: what the tests of a tree compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import labelled_documents, one_value_per_group
from moe_probe.features.topic_enrichment import group_rates
from moe_probe.features.tree.same_label import Labelling

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.tree.dictionary import Dictionary
    from moe_probe.features.tree.options import TreeSettings
    from moe_probe.recording.trace import Trace

#: Groups of documents that rates are kept for. More are put together within a subject, so that memory stays at this many times
#: the width of the dictionary however long the corpus is; bundles are exchanged as groups are.
_MOST_GROUPS = 2_000


@dataclass(frozen=True)
class Subjects:
    """Features' firing rates in groups of documents with their subjects.

    Attributes
    ----------
    rates : ndarray of float, shape (n_groups, n_features)
        Share of the group's tokens on which each feature fires.
    counts : ndarray of int, shape (n_features,)
        Tokens on which each feature fires.
    topic : Labelling
    subtopic : Labelling or None
        Inside the topics; None where the corpus has none.
    strata : ndarray of int, shape (n_groups,), optional
        Labels are exchanged between groups of one stratum only.
    """

    rates: np.ndarray
    counts: np.ndarray
    topic: Labelling
    subtopic: Labelling | None
    strata: np.ndarray | None = None

    @property
    def exchangeable(self) -> bool:
        """Whether topics can be exchanged at all: some stratum has groups of two."""
        strata = np.zeros(len(self.topic.codes)) if self.strata is None else self.strata
        return any(len(np.unique(self.topic.codes[strata == stratum])) > 1 for stratum in np.unique(strata))


class SubjectReader:
    """Computes the `Subjects` of dictionaries of one trace, and remembers them.

    Parameters
    ----------
    trace : Trace
    settings : TreeSettings
    warnings : list of str
        Gets a sentence where the labels do not allow a test.
    """

    def __init__(self, trace: Trace, settings: TreeSettings, warnings: list[str]) -> None:
        self._settings, self._warnings = settings, warnings
        self._documents, self._bundled = trace.documents, False
        self._document_of_token = trace.tokens(["document"])["document"].to_numpy()
        self._subjects: dict[tuple[str, int], Subjects] = {}
        #: Names of the topics by their codes; known once subjects have been read.
        self.topics: tuple[str, ...] = ()

    def of(self, dictionary: Dictionary) -> Subjects:
        """Read the firing rates of a dictionary's features in all groups of documents, with the groups' topics."""
        key = dictionary.name, dictionary.first
        if key not in self._subjects:
            self._subjects[key] = self._read(dictionary)
        return self._subjects[key]

    def _read(self, dictionary: Dictionary) -> Subjects:
        by, strata, firings = self._settings.by, self._settings.strata, dictionary.all_firings()
        if not self._bundled:
            self._documents, self._bundled = bundled(self._documents, self._settings, most=_MOST_GROUPS), True
        groups = group_rates(self._documents, self._document_of_token, firings, label=by, strata=strata)
        self.topics = groups.topics
        topic = Labelling(groups.topic, len(groups.topics))
        subtopic = self._subtopics(groups.groups, topic)
        subjects = Subjects(groups.rates.astype(np.float32), firings.counts, topic, subtopic, groups.strata)
        if groups.strata is not None and not subjects.exchangeable:
            self._warnings.append(
                f"Nothing can be claimed about {by}: every {strata} has a single {by}, so that no labels can be exchanged "
                "(--strata none exchanges them among all documents)."
            )
        return subjects

    def _subtopics(self, groups: Sequence[str], topic: Labelling) -> Labelling | None:
        """Label the groups with subtopics; None, with a warning, where not every group has exactly one."""
        finer = self._settings.finer
        try:
            keep, labels, names = labelled_documents(self._documents, label=finer)
            value = one_value_per_group(labels[keep], names[keep], what=finer)
            codes = np.unique([f"{t}/{value[g]}" for t, g in zip(topic.codes, groups, strict=True)], return_inverse=True)[1]
        except (MoeProbeError, KeyError):
            self._warnings.append(
                f"The tree was compared with {self._settings.by} only: not every document has exactly one {finer}."
            )
            return None
        return Labelling(codes, int(codes.max()) + 1)


def bundled(documents: pd.DataFrame, settings: TreeSettings, *, most: int) -> pd.DataFrame:
    """Put groups of documents of one subject together at random; leave documents unchanged where there are few groups.

    Parameters
    ----------
    documents : pandas.DataFrame
        Of the trace.
    settings : TreeSettings
        No bundle mixes labels of ``by``, of ``strata`` (within which groups are exchanged) or, where every group has one value
        of it, of ``finer``; ``seed`` decides the bundles.
    most : int
        Groups with a label that there may be, about.

    Returns
    -------
    pandas.DataFrame
        The documents with another column ``group``; every subject keeps two groups or more, if it had them.
    """

    def column(name: str | None) -> np.ndarray:
        return documents[name].fillna("").astype(str).to_numpy() if name in documents else np.full(len(documents), "")

    keep, labels, names = labelled_documents(documents, label=settings.by)
    groups, first, group_of = np.unique(names, return_index=True, return_inverse=True)
    n_labelled = len(np.unique(group_of[keep]))
    if n_labelled <= most:
        return documents
    part = column(settings.finer)
    if (part != part[first][group_of]).any():
        part = np.full(len(documents), "")
    columns = np.stack([np.where(keep, labels, "").astype(str), part.astype(str), column(settings.strata).astype(str)])
    subject = np.unique(columns[:, first], axis=1, return_inverse=True)[1].ravel()
    rng = np.random.default_rng(settings.seed)
    bundle = np.empty(len(groups), dtype=object)
    for number in range(int(subject.max()) + 1):
        members = rng.permutation(np.flatnonzero(subject == number))
        n = max(2, int(most * len(members) / n_labelled))
        bundle[members] = [f"bundle {number}.{i % n}" for i in range(len(members))]
    return documents.assign(group=bundle[group_of])
