"""Answers of inference servers -> trace: expert ids of every token, without gate weights.

vLLM (``--enable-return-routed-experts``) and SGLang (``--enable-return-routed-experts``, and
``return_routed_experts`` in the request) return a row for every token but the last, and in it one for every
hidden layer: dense layers hold zeros. `moe_probe.recording.importers.answers` finds the fields of each version,
`moe_probe.recording.importers.routed` decodes the arrays.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_files
from moe_probe.core.text import label_text
from moe_probe.core.textfiles import expand, read_json_rows
from moe_probe.recording.importers.answers import Answer, answers_of
from moe_probe.recording.importers.records import ImportOptions, Recording, import_records, some
from moe_probe.recording.importers.routed import Unshaped, decode_routed, is_missing
from moe_probe.recording.importers.survey import TokenRecord
from moe_probe.recording.trace import Trace

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
        raise MoeProbeError(
            "routed_experts is not base64 of 32-bit integers", str(error), "the string as SGLang returned it"
        ) from error
    if flat.size % (n_layers * top_k):
        raise MoeProbeError(
            f"routed_experts holds {flat.size} ids",
            f"not a multiple of {n_layers} layers x {top_k} slots",
            "the right --layers and --top-k",
        )
    return flat.reshape(-1, n_layers, top_k)


def import_responses(
    path: str | Path,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    top_k: int | None = None,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import answers of vLLM or SGLang as a trace without gate weights.

    JSON Lines or a JSON array, plain or compressed, a row per answer: ``document``, ``topic`` (and optional
    further labels) beside the answer as the server returned it, or beside ``token_ids`` (list of int, prompt
    and answer together), optional ``tokens`` (list of str), and ``routed_experts``. docs/formats.md shows
    the forms. Answers and tokens without routing (null, ``{}``, rows of -1) are left out, and counted in
    ``options.warnings``; so are dense layers.

    Parameters
    ----------
    path : str or Path
        A file, a folder of such files, or a glob.
    layers : sequence of int, optional
        Layers to keep; or, where the arrays hold exactly as many layers, their numbers in the model.
    top_k : int, optional
        Slots per layer, needed for SGLang's strings, which do not say their shape.

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
            f"{path} holds no answer with routing",
            answers.left_out() or "there is no row in it",
            "start the server with --enable-return-routed-experts",
        )
    n_columns = first.experts.shape[1]
    named = answers.named(n_columns)
    recording = Recording(named or range(n_columns), Path(path).name, sha256_files(answers.files), every_layer=True)
    trace = import_records(
        answers.records,
        out,
        recording,
        mode=mode,
        options=replace(options, layers=None if layers is None or named else layers),
    )
    options.warnings.extend(note for note in (answers.left_out(), answers.unequal_slots(), answers.shape_taken()) if note)
    return trace


class _Answers:
    """Answers of some files as records; counts what is left out."""

    def __init__(
        self, files: Sequence[Path], layers: Sequence[int] | None, top_k: int | None, options: ImportOptions
    ) -> None:
        self.files, self.layers, self.top_k, self.options = files, layers, top_k, options
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
            for line, row in read_json_rows(file):
                yield from self._row(row, file, line)

    def left_out(self) -> str:
        """What was left out since the reading began, in a sentence; "" where nothing was."""
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
        """That answers differ in the number of experts per token, in a sentence; "" where they do not."""
        if len(self._slots) < 2:
            return ""
        counts = ", ".join(f"{k} in {n:,} answers" for k, n in self._slots.most_common(5))
        return f"answers differ in experts per token ({counts}): are they of one model and one setting?"

    def shape_taken(self) -> str:
        """How strings without a shape were read, in a sentence; "" where there were none. A wrong --top-k may fit them too."""
        return (
            ""
            if not self._unshaped
            else (
                f"the strings do not say their shape: with --top-k {self.top_k} they are {self._columns} layers of {self.top_k} "
                f"experts per token; check both against the model's configuration"
            )
        )

    def _row(self, row: Any, file: Path, line: int) -> Iterator[TokenRecord]:
        where = f"{file}, line {line}"
        if not isinstance(row, Mapping):
            raise MoeProbeError(f"{where} is not a JSON object", "", "one JSON object per answer")
        for name in ("document", "topic", *self.options.labels):
            if name not in row:
                raise MoeProbeError(
                    f"{where} has no '{name}'",
                    f"its fields are {', '.join(map(str, list(row)[:12]))}",
                    "add it to the row; docs/formats.md describes the fields",
                )
        labels = {k: row[k] for k in (*_LABELS, *self.options.labels) if row.get(k) is not None}
        for name, value in labels.items():
            if label_text(value) is None:
                raise MoeProbeError(
                    f"{where} has a '{name}' that is a list or an object",
                    "a label has one value per document",
                    "a string or a number",
                )
        labels = {k: label_text(value) or "" for k, value in labels.items()}
        for answer in answers_of(row, where):
            named = labels
            if answer.number is not None:  # answers to one prompt are not independent
                named = labels | {
                    "document": f"{labels.get('document', '')}#{answer.number}",
                    "group": labels.get("group") or labels.get("document", ""),
                }
            if is_missing(answer.routed) and is_missing(answer.prompt_routed):
                self._without.append(f"line {line}")
                continue
            record = self._record(answer, named, row.get("tokens"), (file, line))
            if len(record.experts):
                yield record
            else:
                self._without.append(f"line {line}")

    def _record(self, answer: Answer, labels: Mapping[str, str], tokens: Any, place: tuple[Path, int]) -> TokenRecord:
        where = f"{place[0]}, line {place[1]}"
        n_tokens = answer.first + len(answer.ids)
        if tokens is not None and (not isinstance(tokens, list) or len(tokens) != n_tokens):
            raise MoeProbeError(
                f"{where} has another number of tokens than of token ids",
                f"tokens: {len(tokens) if isinstance(tokens, list) else 'no list'}, token ids: {n_tokens}",
                "one string per token id in 'tokens'; or leave them out and pass --tokenizer",
            )
        experts, start = self._experts(answer, where)
        if self._columns not in (None, experts.shape[1]):
            raise MoeProbeError(
                f"{where} has routing of {experts.shape[1]} layers",
                f"the answers before have {self._columns}",
                "answers of one model only",
            )
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
            file=str(place[0]),
            unit="line",
            rows=np.full(len(position), place[1]),
        )

    @staticmethod
    def _texts(tokens: list[Any], answer: Answer, position: np.ndarray, where: str) -> list[str]:
        """Texts of the tokens at some positions; the id where an answer has null."""
        texts = [label_text(tokens[p]) for p in position]
        if None in texts:
            raise MoeProbeError(
                f"{where} has tokens that are lists or objects",
                "a token is a text",
                "one string per token id in 'tokens'; or leave them out and pass --tokenizer",
            )
        return [
            str(answer.ids[p - answer.first]) if tokens[p] is None else text or ""
            for p, text in zip(position, texts, strict=True)
        ]

    def _experts(self, answer: Answer, where: str) -> tuple[np.ndarray, int]:
        """Routing of the sequence and the token at which it starts."""
        n_tokens = answer.first + len(answer.ids)
        prompt = None if is_missing(answer.prompt_routed) else decode_routed(answer.prompt_routed, where)[0]
        rest, said = (None, None) if is_missing(answer.routed) else decode_routed(answer.routed, where)
        start = said if said is not None else answer.start or 0
        n_prompt = answer.n_prompt or 0
        if prompt is not None:
            prompt = self._shaped(prompt, [n_prompt], where)
            if len(prompt) != n_prompt:
                raise MoeProbeError(
                    f"{where} has {n_prompt} prompt tokens and routing for {len(prompt)} of them",
                    "",
                    "prompt_token_ids as the server returned them",
                )
        apart = prompt is not None or (answer.split and said is None and answer.start is None)
        begin = n_prompt if apart else start
        if begin > n_tokens:
            raise MoeProbeError(
                f"{where} has {n_tokens} tokens and routing that starts at token {begin}",
                "",
                "token_ids of prompt and answer together, as the server routed them",
            )
        expected = [n_tokens - 1 - begin, n_tokens - begin]
        if rest is not None:
            rest = self._shaped(rest, expected, where)
            if prompt is None and apart and len(rest) in (n_tokens - 1, n_tokens):
                begin, expected = 0, [n_tokens - 1, n_tokens]
            if len(rest) not in expected:
                raise MoeProbeError(
                    f"{where} has {n_tokens - begin} tokens and routing for {len(rest)}",
                    f"counted from token {begin} on; the last token may lack routing",
                    "token_ids of prompt and answer together, as the server routed them",
                )
        if prompt is not None and rest is not None:
            if prompt.shape[1:] != rest.shape[1:]:
                raise MoeProbeError(
                    f"{where} has routing of shape {prompt.shape} for the prompt and {rest.shape} for the answer",
                    "layers and slots differ",
                    "the answer as the server returned it",
                )
            return np.concatenate([prompt, rest]), 0
        return (rest, begin) if rest is not None else (prompt, 0)  # type: ignore[return-value]  # one of them is there

    def _shaped(self, ids: np.ndarray | Unshaped, n_rows: Sequence[int], where: str) -> np.ndarray:
        if not isinstance(ids, Unshaped):
            return ids
        self._unshaped = True
        out = ids.shaped(n_rows, self.layers, self.top_k, where).astype(np.int64)
        if out.shape[2] > 1:
            out[(out == 0).all(axis=(1, 2))] = -1
        out[out < 0] = -1
        return out
