"""An OpenAI-compatible chat endpoint: requests with retries, and a file of the answers that came.

The key is sent as a bearer token and to nobody else: redirects are not followed, and it is cut out of whatever
the endpoint says before that is shown or stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_errors
from moe_probe.core.text import printable

#: The longest that an endpoint may make a request wait before it counts as not answering.
LONGEST_WAIT_S = 120.0
#: Keys shorter than this are placeholders of local servers ("EMPTY"); cutting them out would spoil answers.
_SHORTEST_SECRET = 8
_AGAIN = (408, 409, 425, 429)
_STEP_S = 0.25


class Unanswered(MoeProbeError):
    """One request got no usable answer in all its attempts; others may."""


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
        Of one request.
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
    timeout_s: float = 60.0
    retries: int = 4
    concurrency: int = 8
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        # an HTTP library would name such a key in full in its complaint
        if not all("!" <= c <= "~" for c in self.api_key):
            raise MoeProbeError(
                "the API key cannot be sent",
                "it holds a space, a line break or a sign outside ASCII",
                "setting the variable again without them",
            )
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise MoeProbeError(
                "the endpoint's address cannot be used",
                "it needs http:// or https:// and a host",
                "http://localhost:8000/v1",
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise MoeProbeError(
                "the endpoint's address cannot be used",
                "it holds a user, a password, ? or #, which messages would show",
                "the plain address, and the key in an environment variable",
            )
        if self.concurrency < 1 or self.retries < 0 or not self.timeout_s > 0:
            raise MoeProbeError(
                f"the settings of {self.base_url} cannot be used",
                "concurrency is below 1, retries below 0 or the timeout not above 0",
                "concurrency=8, retries=4, timeout_s=60",
            )

    def hide(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.api_key, "(key)") if len(self.api_key) >= _SHORTEST_SECRET else text

    def key(self, messages: list[dict[str, str]], limit: int, attempt: int = 0) -> str:
        """SHA-256 of all that decides the answer."""
        asked = [self.base_url, self.model, messages, limit, attempt]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Cache:
    """Answers by request, appended as they come; half a line, left by an interruption, is passed over."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._answers: dict[str, str] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise MoeProbeError(f"{path} cannot be read", str(error.strerror), "another file for answers") from error
        self._broken = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._answers[str(entry["key"])] = str(entry["answer"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The answer to a request, None where there is none yet."""
        return self._answers.get(key)

    def put(self, key: str, answer: str) -> None:
        """Keep an answer."""
        with self._lock, disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._broken else "") + json.dumps({"key": key, "answer": answer}) + "\n")
            self._broken = False
            self._answers[key] = answer


class Client:
    """Asks the endpoint, or the cache; a context manager, safe to share by threads."""

    def __init__(self, endpoint: Endpoint, cache: Path) -> None:
        import httpx

        self.endpoint, self.cache = endpoint, Cache(cache)
        self.answered = 0
        self.failure: MoeProbeError | None = None
        self._in_vain, self._lock, self._stopped = 0, threading.Lock(), threading.Event()
        limits = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self._http = httpx.Client(timeout=endpoint.timeout_s, limits=limits)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *reason: object) -> None:
        self._http.close()

    def stop(self) -> None:
        """Send nothing more: what is under way ends and is kept."""
        self._stopped.set()

    def ask(self, messages: list[dict[str, str]], limit: int, read: Callable[[str], Any]) -> Any:
        """Answer as `read` understands it, asked for once more where it does not; None where it never does.

        Raises
        ------
        Unanswered
            When all attempts failed.
        MoeProbeError
            When the endpoint refuses, or does not answer request after request.
        """
        for attempt in range(2):
            key = self.endpoint.key(messages, limit, attempt)
            answer = self.cache.get(key)
            if answer is None:
                answer = self._send(messages, limit)
                self.cache.put(key, answer)
            with self._lock:
                self.answered += 1
            understood = read(answer)
            if understood is not None:
                return understood
        return None

    def _send(self, messages: list[dict[str, str]], limit: int) -> str:
        import httpx

        e = self.endpoint
        headers = {"Authorization": f"Bearer {e.api_key}"} if e.api_key else {}
        body = {"model": e.model, "messages": messages, "max_tokens": limit, "temperature": 0}
        problem, asked_for = "", None
        for attempt in range(e.retries + 1):
            if attempt and not self._wait(attempt - 1, asked_for):
                problem += f", and it asks to wait {asked_for:,.0f} s"
                break
            if self._stopped.is_set():
                raise Unanswered("a request was not sent", "the run was stopped")
            asked_for = None
            try:
                got = self._http.post(f"{e.base_url.rstrip('/')}/chat/completions", json=body, headers=headers)
            except httpx.InvalidURL as error:
                raise MoeProbeError(f"{e.base_url} is no address", str(error), "http://localhost:8000/v1") from error
            except httpx.RequestError as error:
                problem = e.hide(str(error)) or type(error).__name__
                continue
            status, text = _answer(got)
            if text is not None:
                with self._lock:
                    self._in_vain = 0
                return e.hide(text)
            if status in _AGAIN or status >= 500:
                problem, asked_for = f"status {status}", _seconds(got.headers.get("retry-after"))
            elif status == 200:
                problem = "an answer without choices that hold a message, as OpenAI-compatible endpoints give them"
            else:
                raise self._refusal(status, got.text)
        raise self._given_up(problem, attempt + (not asked_for or asked_for <= LONGEST_WAIT_S))

    def _given_up(self, problem: str, attempts: int) -> MoeProbeError:
        """This request's failure; the whole run's when as many in a row failed as are sent at once."""
        with self._lock:
            self._in_vain += 1
            kind = Unanswered if self._in_vain < max(4, self.endpoint.concurrency) else MoeProbeError
            self.failure = kind(
                f"{self.endpoint.base_url} does not answer",
                f"{problem}, {attempts} times",
                "the same command later: finished requests are kept",
            )
            return self.failure

    def _refusal(self, status: int, text: str) -> MoeProbeError:
        what = {401: "refuses the key", 403: "refuses the key", 404: "knows no such model or address"}.get(
            status, "refuses the request"
        )
        said = " ".join(printable(self.endpoint.hide(text)).split())[:200]
        return MoeProbeError(
            f"{self.endpoint.base_url} {what}",
            f"status {status}: {said}",
            "--llm-key-env, --llm-url and --llm-model as the endpoint wants them",
        )

    def _wait(self, attempt: int, asked_for: float | None) -> bool:
        """Back off as long as the server asks, else 1, 2, 4 ... seconds, with some chance in it; False if too long."""
        if asked_for is not None and asked_for > LONGEST_WAIT_S:
            return False
        own, asked = min(2.0**attempt, 60.0) * random.uniform(0.5, 1.0), random.uniform(1.0, 1.1)
        left = own if asked_for is None else asked_for * asked
        while left > 0 and not self._stopped.is_set():
            time.sleep(min(left, _STEP_S))
            left -= _STEP_S
        return True


def _answer(got: Any) -> tuple[int, str | None]:
    """Status and content; some gateways say 200 and put the true status into the body."""
    try:
        data = got.json()
    except (ValueError, RecursionError):
        return got.status_code, None
    error = data.get("error") if isinstance(data, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if got.status_code != 200 or error:
        return (code if got.status_code == 200 and isinstance(code, int) else got.status_code), None
    try:
        content = data["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return 200, None
    return 200, content if isinstance(content, str) else ""


def _seconds(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date (RFC 9110, 10.2.3)."""
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            until = parsedate_to_datetime(header or "")
        except ValueError:
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
