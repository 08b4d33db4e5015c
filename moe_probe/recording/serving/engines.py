"""What vLLM and SGLang are asked, and what their answers say of the prompt's tokens.

vLLM is asked at ``/v1/completions`` with ``return_token_ids``; it returns ``routed_experts`` with every answer when it was
started with ``--enable-return-routed-experts``. SGLang, started with the same option, returns it where a request has
``return_routed_experts``: natively at ``/generate``, and in later versions at ``/v1/completions``. Both return a row for
every token of prompt and answer but the last one generated, so that one new token gives the routing of the whole prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.http import RetryableError
from moe_probe.core.text import printable, some_of
from moe_probe.recording.importers.answers import answers_of
from moe_probe.recording.importers.routed import is_missing
from moe_probe.recording.importers.sequence import routing_of
from moe_probe.recording.serving.client import ServerClient
from moe_probe.recording.serving.settings import ServerSettings

#: The option that switches routed experts on, in both engines.
SWITCH = "--enable-return-routed-experts"
_WHERE = "the server's answer"


class UnroutedError(RetryableError):
    """An answer without the routing of the whole prompt; asked once more, the server may return it."""

    worth = 2


class NoRoutingError(UnroutedError):
    """An answer without any routing."""


class ServedSequence(NamedTuple):
    """One answer as arrays.

    Attributes
    ----------
    experts : ndarray of int64, shape (n_rows, n_columns, n_slots)
        From the prompt's first token on; -1 where a token has no expert.
    answer : ndarray of int64, shape (n_generated,)
        Token ids of the answer.
    known : bool
        Whether the server returned these ids; zeros otherwise.
    """

    experts: np.ndarray
    answer: np.ndarray
    known: bool


@dataclass(frozen=True)
class Endpoint:
    """One way to ask an engine.

    Attributes
    ----------
    engine : str
        ``vllm``, ``sglang``, or ``unknown`` for a server that does not say what it is.
    path : str
        Behind the server's address.
    """

    engine: str
    path: str

    def body(self, ids: Sequence[int], model: str, max_new_tokens: int) -> dict[str, Any]:
        """Build a request.

        Parameters
        ----------
        ids : sequence of int
            Token ids of the prompt.
        model : str
            Name of the model at the server.
        max_new_tokens : int

        Returns
        -------
        dict
            To be sent as JSON.
        """
        if self.path == "/generate":
            sampling = {"max_new_tokens": max_new_tokens, "temperature": 0}
            return {"input_ids": list(ids), "sampling_params": sampling, "return_routed_experts": True}
        body = {
            "model": model,
            "prompt": list(ids),
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "return_token_ids": True,
        }
        return body if self.engine == "vllm" else body | {"return_routed_experts": True}


_ENDPOINTS = {
    "vllm": [Endpoint("vllm", "/v1/completions")],
    "sglang": [Endpoint("sglang", "/generate"), Endpoint("sglang", "/v1/completions")],
    "auto": [Endpoint("unknown", "/v1/completions"), Endpoint("sglang", "/generate")],
}


class Served(NamedTuple):
    """What a server says of itself.

    Attributes
    ----------
    model : str
        Name of the model at the server.
    endpoints : list of Endpoint
        Ways to ask it, the best first.
    max_length : int or None
        Tokens of prompt and answer that it allows, where it says so.
    version : str
        Of the engine; "" where it does not say so.
    """

    model: str
    endpoints: list[Endpoint]
    max_length: int | None
    version: str


def ask_server(client: ServerClient, settings: ServerSettings) -> Served:
    """Ask a server what it serves.

    Parameters
    ----------
    client : ServerClient
    settings : ServerSettings

    Returns
    -------
    Served

    Raises
    ------
    MoeProbeError
        When it cannot be reached, is no inference server, serves several models and none was named, or not the named one.
    """
    listed = client.get("/v1/models")
    data = listed.get("data") if isinstance(listed, Mapping) else None
    models = {str(m["id"]): m for m in data if isinstance(m, Mapping) and "id" in m} if isinstance(data, list) else {}
    if not models:
        raise MoeProbeError(
            f"{client.address} lists no model",
            "vLLM and SGLang list what they serve at /v1/models",
            "the server's address without a path, such as --server http://localhost:8000",
        )
    name = settings.server_model or next(iter(models))
    names = some_of(map(printable, models), 8)
    if settings.server_model is None and len(models) > 1:
        raise MoeProbeError(f"{client.address} serves several models", names, "--server-model with one of them")
    if name not in models:
        raise MoeProbeError(
            f"{client.address} does not serve {name}", f"it serves {names}", "--server-model with one of them"
        )
    card = models[name]
    owner, length = str(card.get("owned_by", "")).lower(), card.get("max_model_len")
    engine = settings.engine if settings.engine != "auto" else owner if owner in ("vllm", "sglang") else "auto"
    usable = isinstance(length, int) and not isinstance(length, bool) and length > 0
    return Served(name, _ENDPOINTS[engine], length if usable else None, _version(client, engine))


def _version(client: ServerClient, engine: str) -> str:
    """Version of the engine, for the record; nothing depends on it."""
    paths = {"vllm": ("/version",), "sglang": ("/server_info", "/get_server_info")}.get(engine, ())
    for path in paths:
        try:
            answer = client.get(path)
        except MoeProbeError:
            continue
        if isinstance(answer, Mapping) and isinstance(answer.get("version"), str):
            return printable(answer["version"])[:60]
    return ""


def check_prompt(answer: Any, sent: np.ndarray) -> None:
    """Check that a server ran the prompt that it was sent.

    Parameters
    ----------
    answer : object
        JSON of the server.
    sent : ndarray of int, shape (n_tokens,)
        Token ids of the prompt.

    Raises
    ------
    MoeProbeError
        When it added tokens, as a BOS, or cut some off, or ran others.
    """
    levels = [level for level in _levels(answer) if isinstance(level, Mapping)]
    ids = next(
        (x for level in levels for k in ("prompt_token_ids", "input_ids") if isinstance(x := level.get(k), list)), None
    )
    said = next((n for level in levels if type(n := level.get("prompt_tokens")) is int), None)
    n = len(ids) if ids is not None else said
    if n is None or (n == len(sent) and (ids is None or ids == sent.tolist())):
        return
    if n == len(sent):
        why, hint = "it ran other tokens than it was sent", "the tokenizer of the served model as MODEL"
    elif n < len(sent):
        why = f"it was sent {len(sent):,} tokens and ran {n:,}"
        hint = f"a server that does not truncate, or --max-length {n}"
    else:
        more = "a BOS or the like was added" if ids is None or ids[-len(sent) :] == sent.tolist() else "others were added"
        why = f"it was sent {len(sent):,} tokens and ran {n:,}: {more}"
        hint = "a server that runs token ids as they are sent (no template, no BOS in front of ids)"
    raise MoeProbeError("the server changes the prompts", why, hint)


def read_sequence(
    answer: Any, sent: np.ndarray, *, max_new_tokens: int, n_columns: int | None, top_k: int
) -> ServedSequence:
    """Read the routing of an answer.

    Parameters
    ----------
    answer : object
        JSON of the server.
    sent : ndarray of int, shape (n_tokens,)
        Token ids of the prompt.
    max_new_tokens : int
    n_columns : int or None
        Layers of the arrays, for strings without a shape.
    top_k : int
        Experts per token, likewise.

    Returns
    -------
    ServedSequence
        With at least a row for every token of the prompt.

    Raises
    ------
    NoRoutingError
        When there is no routing in it.
    UnroutedError
        When it is not of all tokens, or cannot be read.
    MoeProbeError
        When the server changed the prompt.
    """
    check_prompt(answer, sent)
    levels = [level for level in _levels(answer) if isinstance(level, Mapping)]
    if all(is_missing(level.get(name)) for level in levels for name in ("routed_experts", "prompt_routed_experts")):
        raise NoRoutingError("no routed experts in the answer")
    n_new = next((n for level in levels if type(n := level.get("completion_tokens")) is int), max_new_tokens)
    if not 0 <= n_new <= max_new_tokens:  # a list of so many ids is made below
        raise UnroutedError(f"it claims {n_new:,} generated tokens, {max_new_tokens:,} were asked for")
    known = any(isinstance(level.get(name), list) for level in levels for name in ("token_ids", "output_ids"))
    # what an answer lacks is taken from the request: SGLang repeats no prompt, its OpenAI answers have no ids
    row = {"response": answer, "prompt_token_ids": sent.tolist(), "output_ids": [0] * n_new}
    layers = None if n_columns is None else range(n_columns)
    try:
        found = next(answers_of(row, _WHERE))
        routing = routing_of(found, _WHERE, layers=layers, top_k=top_k)
    except MoeProbeError as error:
        raise UnroutedError(f"{error.what}{': ' if error.why else ''}{error.why}") from error
    if routing.start > 0 or len(routing.experts) < len(sent):
        begin, n = routing.start, len(routing.experts)
        raise UnroutedError(f"routing for {n:,} tokens from token {begin} on; the prompt has {len(sent):,}")
    return ServedSequence(routing.experts, found.ids[len(sent) :], known)


def _levels(answer: Any) -> list[Any]:
    """Objects of an answer that have its fields, the innermost first."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    outer = [*(choices[:1] if isinstance(choices, list) else ()), answer]
    inner = [level.get(name) for level in outer if isinstance(level, Mapping) for name in ("meta_info", "sglext", "sgl_ext")]
    return [*outer, *inner, *(level.get("usage") for level in outer if isinstance(level, Mapping))]
