"""SGLang's recorder in mode ``per_token``: the experts of every token, as documents.

A record is one forward pass of one rank: ``input_ids`` and ``positions`` of its tokens, ``extend_seq_lens`` (lengths of the
prompts in it, one behind the other), ``forward_mode`` (1 prompts, 2 generated tokens, 3 both) and ``topk_ids_of_layer``, physical
experts of shape (layer, token, slot), -1 in empty slots. Nothing says to which request a token belongs. So a document is a
prompt that a pass has from its first token on; what continues another pass is left out and counted. Sources:
`moe_probe.recording.importers.sglang_distribution`; the modes: ``python/sglang/srt/model_executor/forward_batch_info.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.importers.sglang_distribution import logical_experts, records_of
from moe_probe.recording.importers.token_record import SourceRows, TokenRecord
from moe_probe.recording.importers.torch_file import as_array

_PROMPTS, _MIXED = 1, 3  # values of ForwardMode; all others are generated tokens, idle or speculative passes
_AGAIN = "dump the record again"


@dataclass
class LeftOut:
    """Tokens that belong to no document, and why.

    Attributes
    ----------
    generated : int
        Tokens of passes that generate.
    continued : int
        Tokens of prompts that begin in another pass or in the cache.
    padding : int
        Tokens without any expert.
    """

    generated: int = 0
    continued: int = 0
    padding: int = 0

    def notes(self) -> tuple[str, ...]:
        """Say what was left out, a sentence for each reason."""
        out = []
        if self.generated:
            out.append(f"left out: {self.generated:,} generated tokens, of which the recorder does not say whose they are")
        if self.continued:
            out.append(
                f"left out: {self.continued:,} tokens that continue a prompt of another pass or of the cache; "
                "--disable-radix-cache and --chunked-prefill-size -1 keep prompts whole"
            )
        if self.padding:
            out.append(f"left out: {self.padding:,} tokens without any expert, as padding has")
        return tuple(out)


def prompt_records(
    data: Mapping[str, Any], path: Path, labels: Mapping[str, str], left_out: LeftOut
) -> Iterator[TokenRecord]:
    """Yield the prompts of a recorder's file, one document each.

    Parameters
    ----------
    data : mapping
        As `read_dump` returns it, of mode ``per_token``.
    path : Path
        For messages.
    labels : mapping of str to str
        Labels of every document; `document` is the name of the file, and documents are ``NAME#1`` and so on.
    left_out : LeftOut
        What is left out is added to it.

    Yields
    ------
    TokenRecord

    Raises
    ------
    MoeProbeError
        When lengths disagree, positions do not follow each other, or an id lies past the physical experts, naming the record.
    """
    table = logical_experts(data, path)
    n = 0
    for number, record in enumerate(records_of(data, path), start=1):
        where = f"record {number} of {path}"
        ids, positions, experts = _tokens(record, where, table)
        lengths = _lengths(record, where, len(ids))
        if lengths is None:
            left_out.generated += len(ids)
            continue
        left_out.padding += len(ids) - sum(lengths)  # ranks that attend to requests of their own are padded to one length
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            start += length
            if not np.array_equal(positions[part], positions[part.start] + np.arange(length)):
                raise MoeProbeError(
                    f"{where} has positions that do not follow each other", f"token {part.start + 1}", _AGAIN
                )
            if positions[part.start] != 0:
                left_out.continued += length
                continue
            used = (experts[part] >= 0).any(axis=(1, 2))
            left_out.padding += int((~used).sum())
            if not used.any():
                continue
            n += 1
            yield TokenRecord(
                {**labels, "document": f"{labels['document']}#{n}"},
                ids[part][used],
                positions[part][used],
                None,
                experts[part][used],
                None,
                source=SourceRows(path, f"record {number}, token", np.arange(part.start + 1, start + 1)[used]),
            )


def layers_of(data: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return how many layers and logical experts a recorder's file has.

    Parameters
    ----------
    data : mapping
        As `read_dump` returns it.
    path : Path
        For messages.

    Returns
    -------
    n_layers, n_experts : int
    """
    table = logical_experts(data, path)
    return table.shape[0], int(table.max()) + 1


def _tokens(record: Mapping[Any, Any], where: str, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, positions, and experts of shape (token, layer, slot) under their logical numbers."""
    if missing := [name for name in ("input_ids", "positions", "topk_ids_of_layer") if name not in record]:
        raise MoeProbeError(f"{where} has no {missing[0]}", f"it has {', '.join(map(str, record))[:80]}", _AGAIN)
    ids, positions = (_integers(record[name], f"{name} in {where}") for name in ("input_ids", "positions"))
    experts = as_array(record["topk_ids_of_layer"], f"topk_ids_of_layer in {where}")
    if ids.ndim != 1 or positions.shape != ids.shape or experts.dtype.kind not in "iu":
        raise MoeProbeError(f"{where} has {positions.shape} positions for {ids.shape} tokens", "one for each token", _AGAIN)
    if experts.ndim != 3 or experts.shape[:2] != (len(table), len(ids)):
        raise MoeProbeError(
            f"{where} has experts of shape {experts.shape}",
            f"{len(table)} layers and {len(ids)} tokens are expected",
            _AGAIN,
        )
    if experts.size and (experts.min() < -1 or experts.max() >= table.shape[1]):
        wrong = int(experts.min() if experts.min() < -1 else experts.max())
        raise MoeProbeError(
            f"{where} names expert {wrong} of {table.shape[1]:,}",
            "with shared experts fused into the routed ones SGLang counts them too",
            "record with --disable-shared-experts-fusion",
        )
    logical = table[np.arange(len(table))[:, None, None], experts]  # -1 picks the last, and is put back
    return ids, positions, np.where(experts < 0, -1, logical).transpose(1, 0, 2)


def _integers(value: Any, where: str) -> np.ndarray:
    array = as_array(value, where)
    if array.size and array.dtype.kind not in "iu":
        raise MoeProbeError(f"{where} has the type {array.dtype}", "whole numbers are expected", _AGAIN)
    return array.astype(np.int64)


def _lengths(record: Mapping[Any, Any], where: str, n: int) -> list[int] | None:
    """Lengths of the prompts in a pass; None for a pass that has none."""
    mode, lengths = record.get("forward_mode", _PROMPTS), record.get("extend_seq_lens")
    if lengths is None or mode not in (_PROMPTS, _MIXED):
        return None
    values = _integers(lengths, f"extend_seq_lens in {where}")
    if values.ndim != 1 or (values.size and (values.min() < 0 or values.max() > n)) or values.sum() > n:
        raise MoeProbeError(f"{where} has prompts of {values.tolist()[:8]} tokens", f"it has {n:,} tokens", _AGAIN)
    return [int(value) for value in values if value]
