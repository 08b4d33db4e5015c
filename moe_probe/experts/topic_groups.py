"""Usage by group of documents, ready to be compared between topics; and the halves that discover and confirm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import Evidence
from moe_probe.core.stats import Division, GroupUsage, draw_divisions, group_names, group_usage, one_value_per_group
from moe_probe.recording.corpus.splits import DISCOVERY, REPLICATION, assign_halves

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage

#: Columns of documents that are no labels.
_NO_LABELS = frozenset({"document", "group", "split", "n_tokens"})


class Columns(Protocol):
    """Usage whose columns are one (layer, expert) each."""

    @property
    def layer(self) -> np.ndarray:
        """Layer of every column, shape (n_columns,)."""

    @property
    def expert(self) -> np.ndarray:
        """Expert of every column, shape (n_columns,)."""


def topic_groups(usage: Usage, *, label: str, strata: str | None = None, measure: str = "selections") -> GroupUsage:
    """Average usage by group of documents, of a corpus with two topics or more.

    Parameters
    ----------
    usage : Usage
    label : str
        Label column of the topics.
    strata : str, optional
        Label column within whose values topics are permuted.
    measure : {"selections", "gate_mass"}
        Shares of selections, or of gate weights.

    Returns
    -------
    GroupUsage

    Raises
    ------
    MoeProbeError
        As `group_usage`, and when all documents have one topic.
    """
    groups = group_usage(usage, label=label, strata=strata, measure=measure)
    if len(groups.topics) < 2:
        raise MoeProbeError(
            f"all documents have the {label} '{groups.topics[0]}'",
            "usage is compared between topics",
            "a corpus of two topics or more, or another --by",
        )
    return groups


def pair_table(units: Columns, topics: Sequence[str], values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Lay out values of every (column, topic) as a table; rows by column, then topic.

    Parameters
    ----------
    units : GroupUsage or ExpectedUsage
        Whose ``layer`` and ``expert`` (n_columns,) name the columns.
    topics : sequence of str
    values : mapping of str to ndarray, shape (n_topics, n_columns)
        Columns of the table after ``layer, expert, topic``.

    Returns
    -------
    pandas.DataFrame
    """
    import pandas as pd

    names = {
        "layer": np.repeat(units.layer, len(topics)),
        "expert": np.repeat(units.expert, len(topics)),
        "topic": np.tile(np.array(topics, dtype=object), len(units.layer)),
    }
    return pd.DataFrame(names | {name: np.asarray(value).T.ravel() for name, value in values.items()})


def other_labels(usage: Usage, *, label: str = "topic") -> list[str]:
    """List the label columns with at least two values, besides one.

    Parameters
    ----------
    usage : Usage
    label : str
        The label column that is left out.

    Returns
    -------
    list of str
        In the order of the documents' columns.
    """
    labels = usage.documents.drop(columns=[*_NO_LABELS, label], errors="ignore")
    return [name for name in labels if labels[name].dropna().astype(str).replace("", None).nunique() > 1]


def split_halves(usage: Usage, groups: GroupUsage, *, seed: int) -> tuple[np.ndarray, str]:
    """Assign groups to a half that discovers and one that confirms.

    The corpus's own ``split`` is used if it names both halves, else halves are drawn, each topic evenly.

    Parameters
    ----------
    usage : Usage
    groups : GroupUsage
        From that usage.
    seed : int
        Seed of the draw.

    Returns
    -------
    halves : ndarray of str, shape (n_groups,)
    source : str
        Where the halves come from, for ``params`` of results.
    """
    documents = usage.documents
    if (
        usage.evidence is not Evidence.COUNTS
        and "split" in documents
        and set(documents["split"]) == {DISCOVERY, REPLICATION}
    ):
        half_of = one_value_per_group(documents["split"].to_numpy(), group_names(documents), what="split")
        return np.array([half_of[name] for name in groups.groups]), "the corpus's own split"
    topics = [groups.topics[t] for t in groups.topic]
    if groups.strata is not None:  # halves without one of the strata would leave nothing to exchange
        topics = [f"{topic}\x00{stratum}" for topic, stratum in zip(topics, groups.strata, strict=True)]
    return assign_halves(topics, list(groups.groups), seed=seed), "drawn by seed"


def draw_halves(usage: Usage, groups: GroupUsage, *, seed: int) -> tuple[list[Division], str]:
    """Divide groups into halves that discover and confirm: several divisions, each used both ways.

    The corpus's own ``split`` is used as it is if it names both halves.

    Parameters
    ----------
    usage : Usage
    groups : GroupUsage
        From that usage.
    seed : int
        Seed of the draws.

    Returns
    -------
    divisions : list of Division
    source : str
        Where the divisions come from, for ``params`` of results.
    """
    halves, source = split_halves(usage, groups, seed=seed)
    if source != "drawn by seed":
        return [Division(halves == DISCOVERY, halves == REPLICATION)], source
    divisions = draw_divisions(groups.topic, groups.strata, seed=seed)
    return divisions, f"{len(divisions) // 2} divisions drawn by seed, each used both ways"
