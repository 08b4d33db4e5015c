"""Saved answers of vLLM and SGLang: where each version puts token ids and routed experts.

Read are, with the fields `document` and `topic` that the user adds beside them:

- flat rows: ``token_ids`` (prompt and answer together) and ``routed_experts``; or ``prompt_token_ids`` beside them;
- vLLM's HTTP answers (``/v1/completions``, ``/v1/chat/completions``, ``/inference/v1/generate``):
  ``choices[i].token_ids`` and ``.routed_experts``, ``prompt_token_ids`` at the choice or the answer, and
  ``prompt_routed_experts`` at the answer where a version returns the prompt apart (0.21);
- SGLang's ``/generate``: ``output_ids`` and ``meta_info.routed_experts``, and its OpenAI answers:
  ``choices[i].sgl_ext.routed_experts`` or ``choices[i].meta_info.routed_experts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError

_ANSWER = "the answer as the server returned it"
_START = ("routed_experts_start_len", "routed_experts_prompt_start", "start_len")
_PROMPT_IDS = ("prompt_token_ids", "input_ids", "prompt_ids")
_INSIDE = ("meta_info", "sgl_ext", "sglext", "usage")


@dataclass(frozen=True)
class Answer:
    """One answer, its routing not yet decoded.

    Attributes
    ----------
    number : int or None
        Which of several answers to the prompt; None where there is one.
    ids : ndarray of int64
        Token ids of prompt and answer, as far as they are known.
    first : int
        Position of the first of `ids` in the sequence: the prompt's length where its ids are not known.
    n_prompt : int or None
        Tokens of the prompt, where the answer says it.
    routed, prompt_routed : Any
        Values of ``routed_experts`` and ``prompt_routed_experts``.
    start : int or None
        First token that has a row.
    split : bool
        Whether the version returns the prompt's routing apart.
    """

    number: int | None
    ids: np.ndarray
    first: int
    n_prompt: int | None
    routed: Any
    prompt_routed: Any
    start: int | None
    split: bool


def answers_of(row: Mapping[str, Any], where: str) -> Iterator[Answer]:
    """Find the answers in a saved row.

    Parameters
    ----------
    row : mapping
        JSON object of the row; the server's answer may lie in it under ``response``.
    where : str
        File and line, for messages.

    Yields
    ------
    Answer

    Raises
    ------
    MoeProbeError
        When there are no token ids, or they are no whole numbers.
    """
    response = row.get("response")
    levels = [row] if not isinstance(response, Mapping) else [response, row]
    choices = _first(levels, "choices")
    if isinstance(choices, list):
        if not choices or not all(isinstance(choice, Mapping) for choice in choices):
            raise MoeProbeError(f"{where} has no choices that can be read", "choices is a list of objects", _ANSWER)
        for number, choice in enumerate(choices):
            yield _answer([choice, *levels], where, number if len(choices) > 1 else None)
    else:
        yield _answer(levels, where, None)


def _answer(levels: Sequence[Mapping[str, Any]], where: str, number: int | None) -> Answer:
    levels = [*levels, *(level[name] for level in levels for name in _INSIDE if isinstance(level.get(name), Mapping))]
    routed, prompt_routed = _first(levels, "routed_experts"), _first(levels, "prompt_routed_experts")
    split = any("prompt_routed_experts" in level for level in levels)
    start = _whole_number(_first(levels, *_START), "start of the routing", where)
    prompt, own = _ids(_first(levels, *_PROMPT_IDS), "prompt", where), _ids(_first(levels, "token_ids"), "token_ids", where)
    if own is not None and prompt is None and _first(levels, "choices") is None:
        return Answer(number, own, 0, None, routed, prompt_routed, start, split)  # a flat row: prompt and answer together
    n_prompt = _whole_number(_first(levels, "prompt_tokens"), "number of prompt tokens", where)
    if prompt is None:
        prompt = _ids_of_logprobs(levels, "input_token_logprobs", where)
        prompt = None if prompt is not None and len(prompt) != n_prompt else prompt  # of a part of the prompt
    if own is None:
        own = _ids(_first(levels, "output_ids"), "output_ids", where)
    if own is None:
        own = _ids_of_logprobs(levels, "output_token_logprobs", where)
    if own is None or (prompt is None and n_prompt is None):
        missing = "token ids" if own is None else "ids of the prompt, nor their number"
        raise MoeProbeError(
            f"{where} has no {missing}",
            "token_ids and prompt_token_ids (vLLM) or output_ids and input_ids (SGLang) are missing or null",
            "with vLLM send return_token_ids with the request; or add the ids of the request to the row as prompt_token_ids",
        )
    if prompt is None:
        return Answer(number, own, n_prompt or 0, n_prompt, routed, prompt_routed, start, split)
    return Answer(number, np.concatenate([prompt, own]), 0, len(prompt), routed, prompt_routed, start, split)


def _whole_number(value: Any, name: str, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise MoeProbeError(f"{where} has {value!r} as {name}", "expected a whole number", _ANSWER)
    return value


def _first(levels: Sequence[Mapping[str, Any]], *names: str) -> Any:
    """Value of the first of the fields at the innermost level that has one."""
    return next((level[name] for name in names for level in levels if level.get(name) is not None), None)


def _ids(value: Any, name: str, where: str) -> np.ndarray | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**31 for x in value
    ):
        raise MoeProbeError(f"{where} has token ids ({name}) that are no list of whole numbers", "", _ANSWER)
    return np.asarray(value, dtype=np.int64)


def _ids_of_logprobs(levels: Sequence[Mapping[str, Any]], name: str, where: str) -> np.ndarray | None:
    """Token ids in SGLang's lists of (log probability, token id, text)."""
    entries = _first(levels, name)
    if not isinstance(entries, list) or not all(isinstance(e, list) and len(e) > 1 for e in entries):
        return None
    return _ids([entry[1] for entry in entries], name, where)
