"""The documents on which SAEs are not trained: features are measured on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import group_names
from moe_probe.recording.corpus.splits import stratified_split

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: Share of documents that SAEs and labels never see.
HELD_OUT_SHARE = 0.25
_TRAIN, _HELD_OUT = "train", "held-out"


def held_out_documents(trace: Trace, *, share: float = HELD_OUT_SHARE, seed: int = 0) -> np.ndarray:
    """Choose the documents that SAEs and labels never see: whole groups, and the same share of each topic.

    Parameters
    ----------
    trace : Trace
        Its table of documents has the topics and the groups.
    share : float
        Share of documents to hold out, 0 to 1.
    seed : int
        Seed of the random split.

    Returns
    -------
    ndarray of bool, shape (n_documents,)
        True where a document is held out.

    Raises
    ------
    MoeProbeError
        When there are too few documents to hold any out.
    """
    documents = trace.documents
    groups = group_names(documents)
    topics = documents["topic"].astype(str).to_numpy()
    if len(set(groups)) < 2:
        raise MoeProbeError(
            "a single document (or group of documents) cannot be divided",
            "features are measured on documents that the SAE was not trained on",
            "collect a corpus of more documents",
        )
    parts = {_TRAIN: 1 - share, _HELD_OUT: share}
    part = stratified_split(list(topics), list(groups), shares=parts, seed=seed)
    if len(set(part)) < 2:  # topics of one or two documents: divide without regard to topic
        part = stratified_split([""] * len(groups), list(groups), shares=parts, seed=seed)
    if len(set(part)) < 2:  # as few as two documents
        part = np.where(groups == sorted(set(groups))[-1], _HELD_OUT, _TRAIN)
    return np.asarray(part == _HELD_OUT)
