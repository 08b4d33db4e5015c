"""An OpenAI-compatible chat endpoint: requests with retries, answered from a file where they were answered before.

The key is sent as a bearer token and to nobody else: redirects are not followed, and it is removed from whatever the endpoint
answers before that is shown or stored. An answer has 4 MiB at most, and a whole exchange the time-out of a request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from moe_probe.core.deadline import bounded, exchange
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.http import (
    ACCEPTED,
    RetryableError,
    SlowError,
    check_address,
    check_key,
    hide_key,
    is_retried,
    read_bounded,
    read_json_bounded,
    retry_after_s,
    retrying,
)
from moe_probe.core.text import printable
from moe_probe.features.labels.answer_cache import AnswerCache

#: Bytes of an answer at most: some hundred tokens and what surrounds them take a thousandth.
_LARGEST_ANSWER = 1 << 22
_REFUSALS = {401: "refuses the key", 403: "refuses the key", 404: "knows no such model or address"}


class NoAnswerError(MoeProbeError):
    """One request got no usable answer in all its attempts; others may."""


class Request(NamedTuple):
    """Messages to send, and the most tokens that an answer may have."""

    messages: list[dict[str, str]]
    limit: int


@dataclass(frozen=True)
class Endpoint:
    """Where to ask.

    Attributes
    ----------
    base_url : str
        Up to and with the version, e.g. ``http://localhost:8000/v1``.
    model : str
    api_key : str
        Sent as a bearer token; never shown or stored.
    timeout_s : float
        Of one request, from connecting to the last byte of its answer; a model on a small machine may take minutes. A
        connection that is not made within 30 seconds has failed before.
    retries : int
        Further attempts after timeouts, lost connections, 408, 409, 425, 429 and 5xx.
    concurrency : int
        Requests under way at once.
    price_in, price_out : float or None
        Dollars per million tokens.

    Raises
    ------
    MoeProbeError
        When the address, the key or a number cannot be used.
    """

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    timeout_s: float = 600.0
    retries: int = 4
    concurrency: int = 8
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        """Check the address, the key and the numbers."""
        check_key(self.api_key)
        check_address(self.base_url, "the endpoint", "http://localhost:8000/v1")
        if self.concurrency < 1 or self.retries < 0 or not self.timeout_s > 0:
            raise MoeProbeError(
                f"the settings of {self.base_url} cannot be used",
                "concurrency is below 1, retries below 0 or the timeout not above 0",
                "concurrency=8, retries=4, timeout_s=600",
            )

    def hide(self, text: str) -> str:
        """Remove the key from a text."""
        return hide_key(text, self.api_key)

    def cache_key(self, request: Request, repetition: int = 0) -> str:
        """Hash all that decides the answer.

        Parameters
        ----------
        request : Request
        repetition : int
            How often the same was asked before.

        Returns
        -------
        str
            SHA-256, in hexadecimal.
        """
        asked = [self.base_url, self.model, request.messages, request.limit, repetition]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Client:
    """Asks the endpoint, or the cache; a context manager, safe to share by threads.

    Parameters
    ----------
    endpoint : Endpoint
    cache : Path
        Of the `AnswerCache`.
    """

    def __init__(self, endpoint: Endpoint, cache: Path) -> None:
        import httpx

        self.endpoint, self.cache = endpoint, AnswerCache(cache)
        self.answered = 0
        self.failure: MoeProbeError | None = None
        self._failed_in_a_row, self._lock, self._stopped = 0, threading.Lock(), threading.Event()
        n = endpoint.concurrency
        limits = httpx.Limits(max_connections=n, max_keepalive_connections=n)
        timeout = httpx.Timeout(endpoint.timeout_s, connect=min(endpoint.timeout_s, 30.0))
        headers = ACCEPTED | ({"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {})
        self._http = bounded(httpx.Client(timeout=timeout, limits=limits, headers=headers))
        self._retrying = retrying(endpoint.retries, self._sleep)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *reason: object) -> None:
        """Close the connections."""
        self._http.close()

    def stop(self) -> None:
        """Send nothing more: requests under way finish and are kept."""
        self._stopped.set()

    def ask(self, request: Request, read: Callable[[str], Any]) -> Any:
        """Ask, and once more where `read` does not understand the answer.

        Parameters
        ----------
        request : Request
        read : callable
            Takes an answer; returns None where it does not understand it.

        Returns
        -------
        object
            What `read` returns; None where it never understands.

        Raises
        ------
        NoAnswerError
            When all attempts failed.
        MoeProbeError
            When the endpoint refuses, or fails to answer request after request.
        """
        for repetition in range(2):
            key = self.endpoint.cache_key(request, repetition)
            answer = self.cache.get(key)
            if answer is None:
                answer = self._send(request)
                self.cache.put(key, answer)
            with self._lock:
                self.answered += 1
            understood = read(answer)
            if understood is not None:
                return understood
        return None

    def _send(self, request: Request) -> str:
        try:
            answer = self._retrying(self._attempt, request)
        except RetryableError as failure:
            raise self._gave_up(failure, self._retrying.statistics["attempt_number"]) from None
        with self._lock:
            self._failed_in_a_row = 0
        return answer

    def _attempt(self, request: Request) -> str:
        import httpx

        if self._stopped.is_set():
            raise NoAnswerError("a request was not sent", "the run was stopped")
        e = self.endpoint
        body = {"model": e.model, "messages": request.messages, "max_tokens": request.limit, "temperature": 0}
        try:
            address = f"{e.base_url.rstrip('/')}/chat/completions"
            with exchange(e.timeout_s), self._http.stream("POST", address, json=body) as response:
                content = read_bounded(response, limit=_LARGEST_ANSWER)
        except httpx.InvalidURL as error:
            raise MoeProbeError(f"{e.base_url} is not an address", str(error), "http://localhost:8000/v1") from error
        except httpx.ConnectTimeout as error:
            raise RetryableError("no connection in time") from error
        except httpx.TimeoutException as error:
            raise SlowError(f"no whole answer in {e.timeout_s:g} s") from error
        except httpx.RequestError as error:
            raise RetryableError(e.hide(str(error)) or type(error).__name__) from error
        status, text = _read_response(response.status_code, content)
        if text is not None:
            return e.hide(text)
        if is_retried(status):
            raise RetryableError(f"status {status}", retry_after_s(response.headers.get("retry-after")))
        if status == 200:
            raise RetryableError("an answer without choices that have a message, as OpenAI-compatible endpoints give them")
        shown = " ".join(printable(e.hide(content[:4000].decode(errors="replace"))).split())[:200]
        raise MoeProbeError(
            f"{e.base_url} {_REFUSALS.get(status, 'refuses the request')}",
            f"status {status}: {shown}",
            "--llm-key-env, --llm-url and --llm-model as the endpoint requires them",
        )

    def _gave_up(self, failure: RetryableError, attempts: int) -> MoeProbeError:
        """Describe one request's failure; the whole run's when as many in a row failed as are sent at once."""
        waits = f", and it asks to wait {failure.retry_after_s:,.0f} s" if failure.waits_too_long else ""
        with self._lock:
            self._failed_in_a_row += 1
            kind = NoAnswerError if self._failed_in_a_row < max(4, self.endpoint.concurrency) else MoeProbeError
            self.failure = kind(
                f"{self.endpoint.base_url} does not answer",
                f"{failure}{waits}, {attempts} times",
                "the same command later: finished requests are kept",
            )
            return self.failure

    def _sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)


def _read_response(status: int, body: bytes) -> tuple[int, str | None]:
    """Return status and content; some gateways answer 200 and put the true status into the body."""
    data = read_json_bounded(body, limit=_LARGEST_ANSWER)
    if data is None:
        return status, None
    error = data.get("error") if isinstance(data, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if status != 200 or error:
        return (code if status == 200 and isinstance(code, int) else status), None
    try:
        content = data["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return 200, None
    return 200, content if isinstance(content, str) else ""
