"""Documents and their tokens as the rows of a trace's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_probe.recording.collect.windows import EncodedDocument, Encoder
from moe_probe.recording.trace.shard import DOCUMENT_COLUMNS


def document_rows(shard: Sequence[EncodedDocument], *, text: bool) -> list[dict[str, Any]]:
    """Describe the documents of a shard.

    Parameters
    ----------
    shard : sequence of EncodedDocument
    text : bool
        Whether their text is kept.

    Returns
    -------
    list of dict
        One per document, as `TraceWriter.append` takes them.
    """
    return [
        {
            "document": d.document.id,
            **{name: getattr(d.document, name) for name in DOCUMENT_COLUMNS[1:]},
            **d.document.labels,
            **({"text": d.document.text} if text else {}),
        }
        for d in shard
    ]


def token_columns(shard: Sequence[EncodedDocument], encoder: Encoder) -> dict[str, Any]:
    """Describe the tokens of a shard.

    Parameters
    ----------
    shard : sequence of EncodedDocument
    encoder : Encoder
        Gives ids their text.

    Returns
    -------
    dict of str to array, length n_tokens
        As `TraceWriter.append` takes them.
    """
    ids, lengths = np.concatenate([d.ids for d in shard]), [len(d.ids) for d in shard]
    return {
        "document": np.repeat(np.arange(len(shard)), lengths),
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "token_id": ids,
        "token": encoder.strings(ids),
        "special": np.concatenate([d.special for d in shard]),
    }
