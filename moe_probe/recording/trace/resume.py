"""An interrupted trace: whether it may be continued, which of its shards are whole, and what the others left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.own_files import TRACE_FILES
from moe_probe.core.schema import MANIFEST, Manifest, ShardEntry
from moe_probe.recording.trace.files import CHECKSUM, PARTS

#: What must be equal for a trace to be continued: field of the manifest, and what to call it.
IDENTITY = {
    "model.fingerprint": "weights",
    "tokenizer_hash": "tokenizer",
    "corpus.hash": "corpus",
    "layers": "MoE layers",
    "kept": "choice of what to keep",
    "hidden_share": "share of tokens with hidden states",
    "windowing": "windowing",
    "shard_of": "part of the corpus",
    "seed": "seed",
    "settings": "settings",
    "has_text": "choice to keep the text",
    "has_weights": "presence of gate weights",
    "expert_dtype": "type of the expert ids",
}
_NOUNS = IDENTITY | {"model.id": "model"}


def check_same_input(root: Path, before: Manifest, now: Manifest) -> None:
    """Refuse to continue a trace with another model, corpus, tokenizer or other settings.

    Parameters
    ----------
    root : Path
        Folder of the trace, for messages.
    before, now : Manifest
        What the trace was begun with, and what would be appended.

    Raises
    ------
    MoeProbeError
        Naming what differs.
    """
    found = first_difference(before, now, list(IDENTITY))
    if found is not None:
        noun, change = found
        raise MoeProbeError(
            f"{root} cannot be resumed with another {noun}",
            change or "it has changed",
            "the original input, --force to start over, or another folder",
        )


def first_difference(before: Manifest, now: Manifest, fields: Sequence[str]) -> tuple[str, str] | None:
    """Find the first thing that two traces differ in.

    Parameters
    ----------
    before, now : Manifest
    fields : sequence of str
        Keys of `IDENTITY`, or ``model.id``.

    Returns
    -------
    (str, str) or None
        What differs, and how ("" where that would be long); None where nothing does.
    """
    for field in fields:
        old, new = attrgetter(field)(before), attrgetter(field)(now)
        if field == "settings":
            new = {k: v for k, v in new.items() if k in old or k not in _unsaid(before)}
        if old != new:
            if field == "shard_of":
                old, new = before.part, now.part
            return _NOUNS[field], _change(old, new)
    return None


def _unsaid(before: Manifest) -> set[str]:
    """List settings that earlier traces lack, and that do not forbid to continue one."""
    # how tokens are written says nothing of what was run; a sealed trace is cut already
    return {"token_text"} | ({"block_bytes"} if before.status == "sealed" else set())


def _change(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        return "; ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
    if isinstance(old, str | int | float):
        return f"was {str(old)[:16]}, is {str(new)[:16]}"
    return ""


def whole_shards(root: Path) -> list[ShardEntry]:
    """List the shards that were written completely, in order."""
    shards = []
    for index, path in enumerate(sorted((root / PARTS).glob("[0-9]*.json"))):
        entry = ShardEntry.model_validate(json.loads(path.read_text()))
        if entry.index != index:
            break  # a gap: whatever comes after it was not written by this program in order
        shards.append(entry)
    return shards


def remove_unfinished(root: Path, shards: list[ShardEntry]) -> None:
    """Remove the files of a shard that was being written when the process ended; those of other people stay.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    shards : list of ShardEntry
        The whole ones: their files stay.
    """
    known = {f.path for s in shards for f in s.files} | {MANIFEST, CHECKSUM}
    for path in TRACE_FILES.listed(root):
        relative = path.relative_to(root)
        if relative.parts[0] == PARTS:
            stem = relative.parts[1].split(".")[0]
            if stem.isdigit() and int(stem) < len(shards) and not path.name.endswith(".partial"):
                continue
        elif relative.as_posix() in known:
            continue
        path.unlink()
    TRACE_FILES.remove_empty(root)
