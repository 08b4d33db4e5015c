"""From selections per document to one row per group: the unit that is exchanged in every test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, did_you_mean
from moe_probe.core.schema import Evidence
from moe_probe.core.stats import shares as share_tables
from moe_probe.core.stats.effects import half_selection
from moe_probe.core.stats.shares import Shares, ShareTable

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage


@dataclass(frozen=True)
class GroupUsage:
    """Usage shares of independent groups of documents, with one topic a group.

    Attributes
    ----------
    shares : ndarray of float64 or ShareTable, shape (n_groups, n_columns)
        Share of a group's selections of one layer that went to one expert; the columns of a layer
        add up to 1. A column is one (layer, expert), real experts only, layer by layer. A table, which computes the columns
        that are asked for, where an array would be large.
    layer, expert : ndarray of int, shape (n_columns,)
        Layer number (as in every table) and expert of a column.
    layer_index : ndarray of int, shape (n_columns,)
        Ordinal of the column's layer, 0, 1, ...; never decreasing.
    selections : ndarray of float64, shape (n_groups, n_layers)
        Number of selections that the shares were formed from.
    topic : ndarray of int, shape (n_groups,)
        Index into `topics`.
    topics, groups : tuple of str
    strata : ndarray of int, shape (n_groups,), or None
        Groups are only exchanged within a stratum.
    warnings : tuple of str
    """

    shares: Shares
    layer: np.ndarray
    expert: np.ndarray
    layer_index: np.ndarray
    selections: np.ndarray
    topic: np.ndarray
    topics: tuple[str, ...]
    groups: tuple[str, ...]
    strata: np.ndarray | None = None
    warnings: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        """Number of MoE layers."""
        return int(self.selections.shape[1])

    @property
    def groups_per_topic(self) -> np.ndarray:
        """Number of groups of every topic, shape (n_topics,)."""
        return np.bincount(self.topic, minlength=len(self.topics))

    @property
    def testable(self) -> bool:
        """Whether a topic has two groups inside and two outside: without, nothing can be tested."""
        sizes = self.groups_per_topic
        return bool(((sizes > 1) & (len(self.groups) - sizes > 1)).any())

    def half_selections(self) -> np.ndarray:
        """Half a selection as a share of a topic's selections (`half_selection`), shape (n_topics, n_columns)."""
        summed = half_selection(self.selections, self.topic, n_topics=len(self.topics))
        return np.asarray(summed[:, self.layer_index])

    def select(self, rows: np.ndarray) -> GroupUsage:
        """Keep some groups (boolean mask or indices); topics keep their numbers."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            shares=self.shares[index],
            selections=self.selections[index],
            topic=self.topic[index],
            groups=tuple(self.groups[i] for i in index),
            strata=None if self.strata is None else self.strata[index],
        )


def need_column(documents: pd.DataFrame, name: str, purpose: str = "") -> None:
    """Check that documents have a column.

    Parameters
    ----------
    documents : pandas.DataFrame
    name : str
    purpose : str
        End of the sentence: " to stratify by".

    Raises
    ------
    MoeProbeError
        With the column that comes closest.
    """
    if name not in documents.columns:
        raise MoeProbeError(
            f"documents have no column '{name}'{purpose}",
            did_you_mean(name, documents.columns),
            "name a label column of the corpus",
        )


def labelled_documents(documents: pd.DataFrame, *, label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Say which documents carry a label, and their labels and groups.

    Parameters
    ----------
    documents : pandas.DataFrame
        The ``documents`` of a `Usage`.
    label : str
        Column that holds the label, ``topic`` as a rule.

    Returns
    -------
    keep : ndarray of bool, shape (n_documents,)
        False where the label is missing or empty.
    labels, groups : ndarray of str, shape (n_documents,)
        A document without a group is its own group.

    Raises
    ------
    MoeProbeError
        When there is no such column, or no document has a label.
    """
    need_column(documents, label)
    raw = documents[label]
    keep = raw.notna().to_numpy() & (raw.astype(str).str.len() > 0).to_numpy()
    if not keep.any():
        raise MoeProbeError(
            f"no document has a {label}",
            "experts cannot be compared with missing labels",
            f"add a {label} to the corpus, or use analyses that need no labels",
        )
    return keep, raw.astype(str).to_numpy(dtype=object), group_names(documents)


def group_names(documents: pd.DataFrame) -> np.ndarray:
    """Name the group of every document, shape (n_documents,); a document without a group is its own group."""
    names = documents["document"].astype(str)
    if "group" in documents.columns:
        group = documents["group"]
        missing = group.isna() | (group.astype(str).str.len() == 0)
        names = group.astype(str).where(~missing, names)
    return np.asarray(names.to_numpy(dtype=object))


def one_value_per_group(values: Sequence[Any] | np.ndarray, groups: np.ndarray, *, what: str) -> dict[str, str]:
    """Map every group to its one value.

    Parameters
    ----------
    values : sequence, shape (n_documents,)
    groups : ndarray of str, shape (n_documents,)
    what : str
        Name of the value in messages.

    Returns
    -------
    dict of str to str

    Raises
    ------
    MoeProbeError
        Naming the first group that has two values: labels are permuted over groups, so a group
        that lies in two topics (or strata, or halves) has no label to permute.
    """
    value_of: dict[str, str] = {}
    for group, value in zip(groups, values, strict=True):
        known = value_of.setdefault(group, value)
        if known != value:
            raise MoeProbeError(
                f"group '{group}' has documents of two values of {what}, '{known}' and '{value}'",
                f"groups are the unit of permutation and must lie inside one {what}",
                "split the group, or leave the group column out",
            )
    return value_of


def group_usage(usage: Usage, *, label: str = "topic", strata: str | None = None, measure: str = "selections") -> GroupUsage:
    """Compute the token-weighted mean usage of every group of documents.

    A group's share is its number of selections of the expert over its number of selections in the
    layer: the mean of its documents' shares weighted by their tokens. Documents without label or
    without selections are left out (and counted in the warnings). Rows that are sums by topic are no
    observations: those of one label are one group.

    Parameters
    ----------
    usage : Usage
    label : str, default "topic"
        Label column of ``usage.documents``.
    strata : str, optional
        Column within which labels may be exchanged, e.g. ``register``.
    measure : {"selections", "gate_mass"}
        Count selections, or sum their gate weights.

    Returns
    -------
    GroupUsage

    Raises
    ------
    MoeProbeError
        When labels are missing altogether, a group lies in two topics or two strata, or gate weights
        are asked for and the trace has none.
    """
    keep, labels, groups = labelled_documents(usage.documents, label=label)
    if usage.evidence is Evidence.COUNTS:
        groups, strata = labels, None
    _need_measure(usage, measure)
    empty = keep & (usage.document_totals(measure) == 0)
    warnings = []
    if (~keep).any():
        warnings.append(f"{int((~keep).sum())} of {len(keep)} documents have no {label} and were left out.")
    if empty.any():
        warnings.append(f"{int(empty.sum())} documents have no routed token and were left out.")
    rows = np.flatnonzero(keep & ~empty)
    if not len(rows):
        raise MoeProbeError(
            "no labelled document has routed tokens",
            "there is nothing to compare",
            "check that the trace is sealed and its documents are not empty",
        )
    topic_of = one_value_per_group(labels[rows], groups[rows], what=label)
    names = sorted(topic_of)  # an order that does not depend on the order of documents
    topics = sorted(set(topic_of.values()))
    code = {name: i for i, name in enumerate(names)}
    group_of_document = np.full(len(keep), -1)
    group_of_document[rows] = [code[g] for g in groups[rows]]
    shares, selections, filled = _shares(usage, group_of_document, len(names), measure)
    if filled:
        warnings.append(f"{filled} (group, layer) pairs had no selections and were given the mean usage.")
    return GroupUsage(
        shares=shares,
        selections=selections,
        topics=tuple(topics),
        groups=tuple(names),
        layer=np.repeat([layer.layer for layer in usage.layers], usage.num_experts),
        expert=np.concatenate([np.arange(n) for n in usage.num_experts]),
        layer_index=np.repeat(np.arange(len(usage.layers)), usage.num_experts),
        topic=np.array([topics.index(topic_of[name]) for name in names]),
        strata=strata_of_groups(usage.documents.iloc[rows], names, column=strata),
        warnings=tuple(warnings),
    )


def _need_measure(usage: Usage, measure: str) -> None:
    if measure not in ("selections", "gate_mass"):
        raise MoeProbeError(
            f"'{measure}' is no measure of usage",
            did_you_mean(measure, ["selections", "gate_mass"]),
            "selections or gate_mass",
        )
    if measure == "gate_mass" and not usage.has_gate_mass:
        raise MoeProbeError(
            "gate weights cannot be summed", "the trace has expert ids only", "measure selections, or collect with weights"
        )


def _shares(usage: Usage, code: np.ndarray, n: int, measure: str) -> tuple[Shares, np.ndarray, int]:
    """Shares of `n` groups, their selections by layer, and the number of (group, layer) that have the mean of all."""
    if 8 * n * int(usage.num_experts.sum()) > share_tables.DENSE_BYTES:
        table, filled = ShareTable.summed(usage, code, n, measure=measure)
        return table, table.totals, filled
    summed = usage.summed(code, n, measure=measure)
    selections, filled = np.empty((len(summed), len(usage.layers))), 0
    for index, columns in enumerate(usage.columns):
        part = summed[:, columns]
        total = selections[:, index] = part.sum(1)
        empty = total == 0
        # the mean of all groups says nothing about topics, so a filled row cannot make a claim
        mean = part.sum(0) / max(total.sum(), 1) if empty.any() else 0.0
        with np.errstate(invalid="ignore"):
            np.divide(part, total[:, None], out=part)
        part[empty] = mean
        filled += int(empty.sum())
    return summed, selections, filled


def strata_of_groups(documents: pd.DataFrame, groups: Sequence[str], *, column: str | None) -> np.ndarray | None:
    """Code the strata of groups, or None where no strata were asked for.

    Parameters
    ----------
    documents : pandas.DataFrame
        The ``documents`` of a trace or `Usage`.
    groups : sequence of str
        Names of groups; a document without a group is its own.
    column : str, optional
        Column whose values are the strata.

    Returns
    -------
    ndarray of int, shape (n_groups,), or None

    Raises
    ------
    MoeProbeError
        When there is no such column, or a group lies in two strata.
    """
    if column is None:
        return None
    need_column(documents, column, " to stratify by")
    names = group_names(documents)
    wanted = np.isin(names, np.array(groups, dtype=object))
    values = documents[column].astype(str).to_numpy(dtype=object)
    value_of = one_value_per_group(values[wanted], names[wanted], what=column)
    return np.unique([value_of[name] for name in groups], return_inverse=True)[1]
