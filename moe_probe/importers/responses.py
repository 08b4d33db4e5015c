"""Answers of inference servers: a row per answer with its token ids and routed experts.

vLLM (``enable_return_routed_experts``) and SGLang (``--enable-return-routed-experts``) return expert ids
alone, no gate weights. vLLM gives an array (token, layer, slot); SGLang gives it as base64 of int32,
for all tokens but the last.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.importers.records import ImportOptions, TokenRecord, experts_of_layers, import_records
from moe_probe.trace import Trace
from moe_probe.trace.files import sha256_file

_LABELS = ("document", "topic", "subtopic", "group", "split")


def decode_sglang(text: str, *, n_layers: int, top_k: int) -> np.ndarray:
    """Decode SGLang's ``routed_experts``.

    Parameters
    ----------
    text : str
        Base64 of little-endian int32, laid out (token, layer, slot).

    Returns
    -------
    ndarray of int32, shape (n_tokens, n_layers, top_k)

    Raises
    ------
    MoeProbeError
        When the text is not base64 or its length does not fit layers and slots.
    """
    try:
        flat = np.frombuffer(base64.b64decode(text, validate=True), dtype="<i4")
    except (binascii.Error, ValueError) as error:
        raise MoeProbeError("routed_experts is not base64 of 32-bit integers", str(error),
                            "the string as SGLang returned it") from error
    if flat.size % (n_layers * top_k):
        raise MoeProbeError(f"routed_experts holds {flat.size} ids",
                            f"not a multiple of {n_layers} layers x {top_k} slots", "the right --layers and --top-k")
    return flat.reshape(-1, n_layers, top_k)


def import_responses(
    path: str | Path, out: str | Path, *, layers: Sequence[int] | None = None, top_k: int | None = None,
    options: ImportOptions | None = None, mode: str = "new",
) -> Trace:
    """Import answers of vLLM or SGLang as a trace without gate weights.

    JSONL, a row per answer: ``document``, ``topic`` (and optional further labels), ``token_ids`` (list of
    int), optional ``tokens`` (list of str), and ``routed_experts``: nested lists (token, layer, slot) as vLLM
    returns them, or SGLang's base64 string (then `layers` and `top_k` are needed). One row of experts
    fewer than tokens is SGLang's missing last token, which is left out.

    Parameters
    ----------
    layers : sequence of int, optional
        The model's layer numbers, in order; 0, 1, 2 ... where vLLM's array says how many.
    top_k : int, optional
        Slots per layer, needed for base64.

    Raises
    ------
    MoeProbeError
        When a row cannot be read, naming file and line.
    """
    options, path = options or ImportOptions(), Path(path)
    if not path.is_file():
        raise MoeProbeError(f"there are no answers at {path}", "no such file", "a .jsonl file")
    largest: np.ndarray | None = None
    for record in _records(path, layers, top_k, options):
        top = record.experts.max(axis=(0, 2), initial=-1)
        if largest is not None and top.shape != largest.shape:
            raise MoeProbeError(f"document '{record.labels['document']}' has {len(top)} layers",
                                f"the documents before have {len(largest)}", "answers of one model only")
        largest, slots = (top if largest is None else np.maximum(largest, top)), record.experts.shape[2]
    if largest is None:
        raise MoeProbeError(f"{path} holds no answer", "", "one JSON object a line")
    numbers = list(range(len(largest))) if layers is None else list(layers)
    num_experts = experts_of_layers(numbers, largest.tolist(), options, {})
    return import_records(
        lambda: _records(path, layers, top_k, options), out, layers=numbers, num_experts=num_experts,
        top_k=[slots] * len(numbers), source=path.name, source_hash=sha256_file(path), has_weights=False,
        options=options, mode=mode)


def _records(path: Path, layers: Sequence[int] | None, top_k: int | None, options: ImportOptions
             ) -> Iterator[TokenRecord]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise MoeProbeError(f"{where} is not JSON", str(error), "one JSON object a line") from error
            yield _record(row, where, layers, top_k, options)


def _record(row: Any, where: str, layers: Sequence[int] | None, top_k: int | None, options: ImportOptions
            ) -> TokenRecord:
    if not isinstance(row, Mapping):
        raise MoeProbeError(f"{where} is not a JSON object", "", "one JSON object a line")
    for name in ("document", "topic", "token_ids", "routed_experts", *options.labels):
        if name not in row:
            raise MoeProbeError(f"{where} has no '{name}'", f"its fields are {', '.join(row)}",
                                "docs/formats.md describes the fields")
    experts = _experts(row["routed_experts"], where, layers, top_k)
    ids = np.asarray(row["token_ids"], dtype=np.int64)
    if len(experts) not in (len(ids), len(ids) - 1):
        raise MoeProbeError(f"{where} has {len(ids)} tokens and routing for {len(experts)}", "",
                            "token_ids of prompt and answer together, as the server routed them")
    ids = ids[: len(experts)]
    tokens = None if "tokens" not in row else [str(t) for t in row["tokens"]][: len(ids)]
    labels = {k: str(row[k]) for k in (*_LABELS, *options.labels) if row.get(k) is not None}
    return TokenRecord(labels, ids, np.arange(len(ids)), tokens, experts, None)


def _experts(value: Any, where: str, layers: Sequence[int] | None, top_k: int | None) -> np.ndarray:
    if isinstance(value, str):
        if layers is None or top_k is None:
            raise UsageError(f"{where} holds base64", "its shape is not in the string", "--layers 0-23 --top-k 4")
        return decode_sglang(value, n_layers=len(layers), top_k=top_k)
    try:
        experts = np.asarray(value, dtype=np.int64)
    except (ValueError, TypeError) as error:
        raise MoeProbeError(f"{where} has routed_experts that are no array", str(error),
                            "nested lists (token, layer, slot)") from error
    if experts.ndim != 3 or (layers is not None and experts.shape[1] != len(layers)):
        raise MoeProbeError(f"{where} has routed_experts of shape {experts.shape}",
                            "expected (token, layer, slot)" + ("" if layers is None else f" with {len(layers)} layers"),
                            "nested lists as vLLM returns them")
    return experts
