"""The tables of a trace: which columns each has, of which kinds."""

from __future__ import annotations

from pathlib import Path

from moe_probe.core.text import quoted
from moe_probe.core.untrusted_tables import StrangeTable
from moe_probe.recording.trace.files import DOCUMENTS, TOKENS, USAGE

DOCUMENT_KINDS = dict.fromkeys(("document", "topic", "subtopic", "group", "split"), "text") | {"n_tokens": "whole numbers"}
TOKEN_KINDS = dict.fromkeys(("document", "position", "token_id"), "whole numbers") | {
    "token": "text",
    "special": "yes or no",
}
_USAGE_KINDS = dict.fromkeys(("document", "layer", "expert", "selections"), "whole numbers")
#: Kinds of the columns of each table, and of further ones.
_KINDS = {DOCUMENTS: (DOCUMENT_KINDS, "text"), TOKENS: (TOKEN_KINDS, ""), USAGE: (_USAGE_KINDS, "numbers")}


def open_table(root: Path, relative: str, *, data: bytes | None = None) -> StrangeTable:
    """Open a table of a trace, or of one of its shards; columns are checked, rows are not.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    relative : str
        Name of the table, or its path below the folder.
    data : bytes, optional
        What it holds, where it was read already.

    Returns
    -------
    StrangeTable

    Raises
    ------
    MoeProbeError
        When it is damaged or lacks a column.
    """
    kinds, others = _KINDS[relative.rpartition("/")[2]]
    return StrangeTable(root / relative, kinds, others=others, hint=hint_of(root), data=data)


def hint_of(root: Path) -> str:
    """Say what can be done about a damaged file of a trace."""
    return f"run moe-probe verify {quoted(root)}, and make the trace again"
