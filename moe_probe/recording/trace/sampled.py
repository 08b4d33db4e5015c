"""Vectors of sampled tokens: which tokens of a shard they belong to.

A file of vectors has, beside ``values``, the rows of their tokens counted from the first token of the shard
(``rows_in_shard``). So a shard says the same wherever in a trace it stands, and traces are merged without touching a
vector. Traces that were written earlier count from the first token of the trace (``rows``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Tensor with the rows of sampled tokens, counted from the shard's first token.
SHARD_ROWS = "rows_in_shard"
#: The same, counted from the trace's first token: in traces that were written earlier.
TRACE_ROWS = "rows"


def rows_in_shard(file: Any, first: int) -> Tensor | None:
    """Read which tokens of a shard have vectors.

    Parameters
    ----------
    file : safetensors.safe_open
        Of vectors, opened for torch.
    first : int
        The trace's row of the shard's first token.

    Returns
    -------
    Tensor of int64, shape (n_sampled,), or None
        Rows counted from the shard's first token; None where the file has no vectors of sampled tokens.
    """
    names = set(file.keys())
    if SHARD_ROWS in names:
        return file.get_tensor(SHARD_ROWS)  # type: ignore[no-any-return]
    return file.get_tensor(TRACE_ROWS) - first if TRACE_ROWS in names else None


def with_trace_rows(tensors: dict[str, Any], first: int) -> dict[str, Any]:
    """Replace a shard's own rows by the trace's.

    Parameters
    ----------
    tensors : dict of str to Tensor
        A file of the shard.
    first : int
        The trace's row of the shard's first token.

    Returns
    -------
    dict of str to Tensor
        With ``rows`` counted from the trace's first token, where the file has rows.
    """
    if SHARD_ROWS not in tensors:
        return tensors
    return {TRACE_ROWS if k == SHARD_ROWS else k: v + first if k == SHARD_ROWS else v for k, v in tensors.items()}
