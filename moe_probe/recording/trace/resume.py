"""An interrupted trace: whether it may be continued, which of its shards are whole, and what the others left."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import is_left_over
from moe_probe.core.own_files import TRACE_FILES
from moe_probe.core.progress import Bar
from moe_probe.core.schema import IMPORTED_AS, MANIFEST, Manifest
from moe_probe.core.text import quoted
from moe_probe.recording.trace.files import CHECKSUM
from moe_probe.recording.trace.part_files import DamageError, PartEntry, part_name
from moe_probe.recording.trace.parts import check_part, counted_parts
from moe_probe.recording.trace.verify import damage

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
    return {"token_text", IMPORTED_AS} | ({"block_bytes"} if before.status == "sealed" else set())


def _change(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        return "; ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
    if isinstance(old, str | int | float):
        return f"was {str(old)[:16]}, is {str(new)[:16]}"
    return ""


def sound_shards(root: Path, manifest: Manifest) -> tuple[list[PartEntry], tuple[str, ...]]:
    """Find the shards of an unfinished trace that are whole, up to the first that is not.

    Every file of theirs is read once.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest

    Returns
    -------
    shards : list of PartEntry
        In order, from the first on.
    notes : tuple of str
        A sentence that names the first damaged shard, where there is one.

    Raises
    ------
    MoeProbeError
        When a file cannot be read for want of permission.
    """
    n, offset, shards, why = counted_parts(root), 0, [], ""
    with Bar("check", total=n, unit="shards") as bar:
        for index in range(n):
            try:
                entry = check_part(root, manifest, index, offset)
            except DamageError as damage:
                why = str(damage)
                break
            shards.append(entry)
            offset += entry.n_documents
            bar.update(1)
    kept = {folder for entry in shards for folder in _folders(entry)}
    for index, entry in enumerate(shards):
        if missing := kept - _folders(entry):  # what one shard has, all of them have
            shards, why = shards[:index], f"it has no file in {min(missing)}"
            break
    if len(shards) == n:
        return shards, ()
    after = n - len(shards) - 1
    rest = "it is" if not after else f"it and the {'one' if after == 1 else f'{after:,} shards'} after it are"
    return shards, (f"shard {len(shards)} of {root} is damaged ({why}): {rest} recorded again",)


def sealed_shards(root: Path, manifest: Manifest) -> list[PartEntry]:
    """List the shards of a sealed trace, which has to be whole: every file is read once.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest

    Returns
    -------
    list of PartEntry

    Raises
    ------
    MoeProbeError
        Naming the first damaged file.
    """
    problem = next(damage(root, manifest), None)
    if problem is not None:
        raise MoeProbeError(
            f"the sealed trace at {root} is damaged",
            problem,
            f"moe-probe verify {quoted(root)} names every damaged file; --force records it again",
        )
    return [PartEntry(**shard.model_dump()) for shard in manifest.shards]


def _folders(entry: PartEntry) -> set[str]:
    return {file.path.rpartition("/")[0] for file in entry.files}


def remove_unfinished(root: Path, shards: Sequence[PartEntry]) -> None:
    """Remove what is left of shards that were being written, or are damaged, and of an interrupted sealing.

    Files of other people stay.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    shards : sequence of PartEntry
        The whole ones: their files stay.

    Raises
    ------
    MoeProbeError
        When one of the program's files is a link: nothing is removed then.
    """
    known = {file.path for shard in shards for file in (*shard.files, *shard.tables)} | {MANIFEST, CHECKSUM}
    known |= {part_name(shard.index) for shard in shards}
    for path in TRACE_FILES.listed(root):
        if is_left_over(path.name) or path.relative_to(root).as_posix() not in known:
            path.unlink()
    TRACE_FILES.remove_empty(root)
