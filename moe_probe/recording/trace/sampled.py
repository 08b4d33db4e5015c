"""Vectors of sampled tokens: which tokens of a shard they belong to.

A file of vectors has, beside ``values``, the rows of their tokens counted from the first token of the shard
(``rows_in_shard``). So a shard says the same wherever in a trace it stands, and traces are merged without touching a
vector. Traces that were written earlier count from the first token of the trace (``rows``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from moe_probe.core.untrusted import TensorFile

#: Tensor with the rows of sampled tokens, counted from the shard's first token.
SHARD_ROWS = "rows_in_shard"
#: The same, counted from the trace's first token: in traces that were written earlier.
TRACE_ROWS = "rows"


def rows_in_shard(file: TensorFile, first: int, n_tokens: int) -> Tensor | None:
    """Read which tokens of a shard have vectors.

    Parameters
    ----------
    file : TensorFile
        Of vectors, opened for torch.
    first : int
        The trace's row of the shard's first token.
    n_tokens : int
        Tokens of the shard.

    Returns
    -------
    Tensor of int64, shape (n_sampled,), or None
        Rows counted from the shard's first token; None where the file has no vectors of sampled tokens.

    Raises
    ------
    MoeProbeError
        When rows and vectors differ in number, or a row is none of the shard.
    """
    name = next((name for name in (SHARD_ROWS, TRACE_ROWS) if name in file.names), None)
    if name is None:
        return None
    (n_sampled,) = file.check(name, ["I64"], (None,)) if file.shape(name) != (0,) else (0,)
    values = file.shape("values")
    if len(values) not in (2, 3) or values[0] != n_sampled or 0 in values[1:]:
        raise file.damaged(f"it has {n_sampled} rows for values of shape {values}")
    rows: Tensor = file.tensor(name) - (first if name == TRACE_ROWS else 0)
    if n_sampled and not 0 <= int(rows.min()) <= int(rows.max()) < n_tokens:
        raise file.damaged(f"it has vectors of tokens that its shard of {n_tokens} tokens does not have")
    return rows


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
