"""One server, tried before the corpus is sent: asks for windows, and reads their routing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.collect.windows import EncodedDocument, Window
from moe_probe.recording.serving.client import ServerClient, UnansweredError
from moe_probe.recording.serving.engines import (
    SWITCH,
    Endpoint,
    NoRoutingError,
    Served,
    ServedSequence,
    UnroutedError,
    read_sequence,
)
from moe_probe.recording.serving.layers import ServedLayers
from moe_probe.recording.serving.settings import ServerSettings

T = TypeVar("T")
#: Tokens of the text that is sent to try the server.
_TRIAL = 16


class Answered(NamedTuple):
    """What a server returned for one window.

    Attributes
    ----------
    experts : ndarray of uint8 or uint16, shape (n_recorded, n_layers, n_slots)
        Of the window's recorded tokens.
    answer : ndarray of int64, shape (n_answer,)
        Generated token ids that have routing: all but the last.
    answer_experts : ndarray of uint8 or uint16, shape (n_answer, n_layers, n_slots)
    """

    experts: np.ndarray
    answer: np.ndarray
    answer_experts: np.ndarray


class AskedServer:
    """Asks a server for windows; safe to share by threads once it was tried.

    Parameters
    ----------
    client : ServerClient
    settings : ServerSettings
    served : Served
        What the server says of itself.
    layers : ServedLayers
        What is recorded.
    """

    def __init__(self, client: ServerClient, settings: ServerSettings, served: Served, layers: ServedLayers) -> None:
        self.client, self.settings, self.served, self.layers = client, settings, served, layers
        self.endpoint, self.n_columns = served.endpoints[0], layers.n_columns
        self.dtype: Literal["uint8", "uint16"] = "uint8" if max(x.num_experts for x in layers.layers) < 256 else "uint16"

    def try_out(self, document: EncodedDocument) -> None:
        """Send the beginning of a document, to see whether and how the server returns routing.

        Raises
        ------
        MoeProbeError
            When it returns none, or routing of another model.
        """
        ids = document.windows[0].ids[:_TRIAL]
        failure: Exception | None = None
        for endpoint in self.served.endpoints:
            answer = self._post(endpoint, ids, self.settings.max_new_tokens, lambda answer: (answer,))
            if answer is None:  # no such path
                continue
            self.endpoint = endpoint
            try:
                sequence = self._read(answer[0], ids, self.settings.max_new_tokens)
                self.layers.check(sequence.experts)
                self.layers.select(sequence.experts[: len(ids)], self.dtype)
            except UnroutedError as error:
                failure = error
                continue
            self.n_columns = sequence.experts.shape[1]
            if self.settings.keep_answer and not sequence.known:
                raise MoeProbeError(
                    "--keep-answer needs the ids of what is generated",
                    f"{endpoint.path} of {self.client.address} returns none",
                    "a later version of the engine, or omit --keep-answer",
                )
            return
        if failure is None or isinstance(failure, NoRoutingError):
            raise MoeProbeError(
                f"{self.client.address} returns no routed experts",
                "its answers have none; nothing but a short text was sent, to try",
                f"start the server with {SWITCH} (vLLM from 0.21 on, SGLang)",
            )
        raise MoeProbeError(
            f"{self.client.address} returns routing that cannot be used",
            str(failure),
            "MODEL with the served model's config.json; --engine vllm or sglang",
        )

    def ask(self, window: Window, max_new_tokens: int) -> Answered:
        """Ask for one window.

        Parameters
        ----------
        window : Window
        max_new_tokens : int

        Returns
        -------
        Answered

        Raises
        ------
        UnansweredError
            When all attempts failed.
        MoeProbeError
            When the server refuses the request, or changes the prompt.
        """

        def read(answer: Any) -> Answered:
            sequence = self._read(answer, window.ids, max_new_tokens)
            # no pass was made with the last generated token: whatever stands in its row is no routing
            n, n_routed = len(window.ids), max(len(sequence.answer) - 1, 0)
            experts = self.layers.select(sequence.experts[: n + n_routed], self.dtype)
            return Answered(experts[window.record], sequence.answer[: len(experts) - n], experts[n:])

        parts = self._post(self.endpoint, window.ids, max_new_tokens, read)
        if parts is None:
            raise UnansweredError(f"{self.client.address} does not answer", f"it has no {self.endpoint.path} any more")
        return parts

    def _read(self, answer: Any, ids: np.ndarray, max_new_tokens: int) -> ServedSequence:
        return read_sequence(answer, ids, max_new_tokens=max_new_tokens, n_columns=self.n_columns, top_k=self.layers.top_k)

    def _post(self, endpoint: Endpoint, ids: np.ndarray, max_new_tokens: int, read: Callable[[Any], T]) -> T | None:
        # 16 characters hold the longest id in any encoding, with its share of brackets
        limit = (len(ids) + max_new_tokens) * (self.n_columns or 512) * (self.layers.top_k + 8) * 16
        body = endpoint.body(ids.tolist(), self.served.model, max_new_tokens)
        return self.client.post(endpoint.path, body, limit=limit, read=read)
