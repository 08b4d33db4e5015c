"""Answers of inference servers -> trace: expert ids of every token, without gate weights.

vLLM (``--enable-return-routed-experts``) and SGLang (``--enable-return-routed-experts``, and
``return_routed_experts`` in the request) return a row for every token but the last, and in it one for every
hidden layer: zeros for dense layers. `moe_probe.recording.importers.answers` finds the fields of each version,
`moe_probe.recording.importers.routed` decodes the arrays, `moe_probe.recording.importers.sequence` joins prompt and answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_files
from moe_probe.core.text import label_text, some_of
from moe_probe.core.textfiles import expand
from moe_probe.recording.importers.answers import Answer, answers_of
from moe_probe.recording.importers.jsonrows import json_objects, label_of
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.plan import some
from moe_probe.recording.importers.records import import_records
from moe_probe.recording.importers.routed import is_missing
from moe_probe.recording.importers.sequence import routing_of
from moe_probe.recording.importers.token_record import SourceRows, TokenRecord
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.shard import DOCUMENT_COLUMNS

_TOKENS = "one string per token id in 'tokens'; or omit them and pass --tokenizer"


def import_responses(  # noqa: PLR0913 - public API: keyword-only options with defaults
    path: str | Path,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    top_k: int | None = None,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import answers of vLLM or SGLang as a trace without gate weights.

    JSON Lines or a JSON array, plain or compressed, one row per answer: ``document``, ``topic`` (and optional
    further labels) beside the answer as the server returned it, or beside ``token_ids`` (list of int, prompt
    and answer together), optional ``tokens`` (list of str), and ``routed_experts``. docs/formats.md shows
    the forms. Answers and tokens without routing (null, ``{}``, rows of -1) are omitted, and counted in
    `Trace.warnings`; so are dense layers.

    Parameters
    ----------
    path : str or Path
        A file, a folder of such files, or a glob.
    out : str or Path
        Folder of the trace.
    layers : sequence of int, optional
        Layers to keep; or, where the arrays have exactly as many layers, their numbers in the model.
    top_k : int, optional
        Slots per layer, needed for SGLang's strings, which do not say their shape.
    options : ImportOptions, optional
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed.

    Raises
    ------
    MoeProbeError
        When a row cannot be read, naming file and line.
    """
    options = options or ImportOptions()
    layers = options.layers if layers is None else tuple(layers)
    answers = _Answers(expand(path, (".jsonl", ".ndjson", ".json")).files, layers, top_k, options)
    first = next(answers.records(), None)
    if first is None:
        raise MoeProbeError(
            f"{path} has no answer with routing",
            answers.left_out() or "there is no row in it",
            "start the server with --enable-return-routed-experts",
        )
    n_columns = first.experts.shape[1]
    named = answers.named(n_columns)
    source = ImportSource(
        named or range(n_columns),
        Path(path).name,
        sha256_files(answers.files),
        every_layer=True,
        kind="answers of a serving engine (vllm, sglang)",
    )
    options = replace(options, layers=None if layers is None or named else layers)
    trace = import_records(answers.records, out, source, mode=mode, options=options)
    notes = (answers.left_out(), answers.unequal_slots(), answers.assumed_shape())
    trace.warnings += tuple(note for note in notes if note)
    return trace


class _Answers:
    """Answers of some files as records; counts what is left out."""

    def __init__(
        self, files: Sequence[Path], layers: Sequence[int] | None, top_k: int | None, options: ImportOptions
    ) -> None:
        self.files, self.layers, self.top_k, self.labels = files, layers, top_k, options.labels
        self._tally: Counter[str] = Counter()
        self._slots: Counter[int] = Counter()
        self._without: list[str] = []
        self._columns: int | None = None
        self._unshaped = False

    def named(self, n_columns: int) -> tuple[int, ...] | None:
        """Numbers of the columns, where --layers names every one of them rather than picking some."""
        if self.layers is None or (len(self.layers) != n_columns or max(self.layers) < n_columns):
            return None
        return tuple(self.layers)

    def records(self) -> Iterator[TokenRecord]:
        """Read the files from the start."""
        self._tally, self._without, self._slots = Counter(), [], Counter()
        for file in self.files:
            for line, row in json_objects(file, "answer"):
                yield from self._row(row, file, line)

    def left_out(self) -> str:
        """Say what was left out since the reading began; "" where nothing was."""
        parts = [some(self._without, "answer", " without routing")] if self._without else []
        if self._tally["no row"]:
            parts.append(f"{self._tally['no row']:,} tokens without routing (rows of -1 or zeros)")
        if self._tally["no id"]:
            parts.append(
                f"{self._tally['no id']:,} tokens of prompts whose ids are not in the answers (add the request's ids "
                "as prompt_token_ids)"
            )
        return f"left out: {'; '.join(parts)}" if parts else ""

    def unequal_slots(self) -> str:
        """Say that answers differ in the number of experts per token; "" where they do not."""
        if len(self._slots) < 2:
            return ""
        counts = ", ".join(f"{k} in {n:,} answers" for k, n in self._slots.most_common(5))
        return f"answers differ in experts per token ({counts}): are they of one model and one setting?"

    def assumed_shape(self) -> str:
        """Say how strings without a shape were read; "" where there were none. A wrong --top-k may fit them too."""
        if not self._unshaped:
            return ""
        return (
            f"the strings do not say their shape: with --top-k {self.top_k} they are {self._columns} layers of {self.top_k} "
            f"experts per token; check both against the model's configuration"
        )

    def _row(self, row: Mapping[str, Any], file: Path, line: int) -> Iterator[TokenRecord]:
        where = f"{file}, line {line}"
        for name in ("document", "topic", *self.labels):
            if name not in row:
                hint = "add it to the row; docs/formats.md describes the fields"
                raise MoeProbeError(f"{where} has no '{name}'", f"its fields are {some_of(row, 12)}", hint)
        names = (*DOCUMENT_COLUMNS, *self.labels)
        labels = {name: label_of(row[name], name, where) for name in names if row.get(name) is not None}
        for answer in answers_of(row, where):
            named = labels
            if answer.number is not None:  # answers to one prompt are not independent
                named = labels | {
                    "document": f"{labels.get('document', '')}#{answer.number}",
                    "group": labels.get("group") or labels.get("document", ""),
                }
            missing = is_missing(answer.routed) and is_missing(answer.prompt_routed)
            record = None if missing else self._record(answer, named, row.get("tokens"), (file, line))
            if record is not None and len(record.experts):
                yield record
            else:
                self._without.append(f"line {line}")

    def _record(self, answer: Answer, labels: Mapping[str, str], tokens: Any, at: tuple[Path, int]) -> TokenRecord:
        file, line = at
        where = f"{file}, line {line}"
        n_tokens = answer.first + len(answer.ids)
        if tokens is not None and (not isinstance(tokens, list) or len(tokens) != n_tokens):
            why = f"tokens: {len(tokens) if isinstance(tokens, list) else 'no list'}, token ids: {n_tokens}"
            raise MoeProbeError(f"{where} has another number of tokens than of token ids", why, _TOKENS)
        experts, start, unshaped = routing_of(answer, where, layers=self.layers, top_k=self.top_k)
        self._unshaped |= unshaped
        if self._columns not in (None, experts.shape[1]):
            why = f"the answers before have {self._columns}"
            raise MoeProbeError(f"{where} has routing of {experts.shape[1]} layers", why, "answers of one model only")
        self._columns = experts.shape[1]
        self._slots[experts.shape[2]] += 1
        position = np.arange(start, start + len(experts))
        known, routed = position >= answer.first, (experts >= 0).any(axis=(1, 2))
        self._tally["no id"] += int((~known).sum())
        self._tally["no row"] += int((known & ~routed).sum())
        keep = known & routed
        position = position[keep]
        return TokenRecord(
            labels,
            answer.ids[position - answer.first],
            position,
            None if tokens is None else self._texts(tokens, answer, position, where),
            experts[keep],
            None,
            source=SourceRows(file, "line", np.full(len(position), line)),
        )

    @staticmethod
    def _texts(tokens: list[Any], answer: Answer, position: np.ndarray, where: str) -> list[str]:
        """Return the texts of the tokens at some positions; the id where an answer has null."""
        texts = [label_text(tokens[p]) for p in position]
        if None in texts:
            raise MoeProbeError(f"{where} has tokens that are lists or objects", "a token is a text", _TOKENS)
        return [
            str(answer.ids[p - answer.first]) if tokens[p] is None else text or ""
            for p, text in zip(position, texts, strict=True)
        ]
