"""Routing of a whole sequence, prompt and answer, from the fields of a server's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.importers.answers import Answer
from moe_probe.recording.importers.routed import Unshaped, decode_routed, is_missing, mark_empty

_IDS = "token_ids of prompt and answer together, as the server routed them"


class SequenceRouting(NamedTuple):
    """Experts of the tokens of a sequence.

    Attributes
    ----------
    experts : ndarray of int64, shape (n_tokens, n_layers, top_k)
        -1 where a token has no expert.
    start : int
        Position of the first token that has a row.
    unshaped : bool
        Whether the answer did not say the shape, so that it rests on the number of slots that the user gave.
    """

    experts: np.ndarray
    start: int
    unshaped: bool


def routing_of(answer: Answer, where: str, *, layers: Sequence[int] | None, top_k: int | None) -> SequenceRouting:
    """Decode the routing of an answer and join that of prompt and answer where they come apart.

    Parameters
    ----------
    answer : Answer
        With routing.
    where : str
        The answer's name in messages.
    layers : sequence of int, optional
        As many as the arrays have layers, or some of them; for strings without a shape.
    top_k : int, optional
        Slots per token and layer; for strings without a shape.

    Returns
    -------
    SequenceRouting

    Raises
    ------
    MoeProbeError
        When an array cannot be read, or does not fit the numbers of tokens.
    UsageError
        When `top_k` is needed and missing.
    """
    reader = _Reader(answer, where, layers, top_k)
    prompt = reader.prompt()
    rest, begin = reader.rest(prompt is not None)
    if prompt is not None and rest is not None:
        return SequenceRouting(_joined(prompt, rest, where), 0, reader.unshaped)
    if rest is not None:
        return SequenceRouting(rest, begin, reader.unshaped)
    if prompt is None:
        raise MoeProbeError(f"{where} has no routing", "routed_experts is missing or empty", "an answer with routing")
    return SequenceRouting(prompt, 0, reader.unshaped)


class _Reader:
    """The arrays of one answer."""

    def __init__(self, answer: Answer, where: str, layers: Sequence[int] | None, top_k: int | None) -> None:
        self.answer, self.where, self.layers, self.top_k = answer, where, layers, top_k
        self.unshaped = False

    def prompt(self) -> np.ndarray | None:
        """Routing of the prompt, where the version returns it apart."""
        answer, where = self.answer, self.where
        if is_missing(answer.prompt_routed):
            return None
        n_prompt = answer.n_prompt or 0
        prompt = self._shaped(decode_routed(answer.prompt_routed, where)[0], [n_prompt])
        if len(prompt) != n_prompt:
            raise MoeProbeError(
                f"{where} has {n_prompt} prompt tokens and routing for {len(prompt)} of them",
                "",
                "prompt_token_ids as the server returned them",
            )
        return prompt

    def rest(self, has_prompt: bool) -> tuple[np.ndarray | None, int]:
        """Routing of everything else, and the position of its first token."""
        answer, where = self.answer, self.where
        ids, own_start = (None, None) if is_missing(answer.routed) else decode_routed(answer.routed, where)
        n_tokens = answer.first + len(answer.ids)
        apart = has_prompt or (answer.split and own_start is None and answer.start is None)
        begin = (answer.n_prompt or 0) if apart else own_start if own_start is not None else answer.start or 0
        if begin > n_tokens:
            raise MoeProbeError(f"{where} has {n_tokens} tokens and routing that starts at token {begin}", "", _IDS)
        if ids is None:
            return None, begin
        rest = self._shaped(ids, [n_tokens - 1 - begin, n_tokens - begin])
        if not has_prompt and apart and len(rest) in (n_tokens - 1, n_tokens):
            begin = 0
        if len(rest) not in (n_tokens - 1 - begin, n_tokens - begin):
            why = f"counted from token {begin} on; the last token may lack routing"
            raise MoeProbeError(f"{where} has {n_tokens - begin} tokens and routing for {len(rest)}", why, _IDS)
        return rest, begin

    def _shaped(self, ids: np.ndarray | Unshaped, n_rows: Sequence[int]) -> np.ndarray:
        if not isinstance(ids, Unshaped):
            return ids
        self.unshaped = True
        return mark_empty(ids.shaped(n_rows, self.layers, self.top_k, self.where).astype(np.int64))


def _joined(prompt: np.ndarray, rest: np.ndarray, where: str) -> np.ndarray:
    if prompt.shape[1:] != rest.shape[1:]:
        raise MoeProbeError(
            f"{where} has routing of shape {prompt.shape} for the prompt and {rest.shape} for the answer",
            "layers and slots differ",
            "the answer as the server returned it",
        )
    return np.concatenate([prompt, rest])
