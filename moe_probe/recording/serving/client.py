"""HTTP requests to a serving engine: one address, retries, answers of bounded size, every refusal one sentence."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from moe_probe.core.deadline import bounded, exchange
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.http import (
    ACCEPTED,
    RetryableError,
    SlowError,
    hide_key,
    is_retried,
    read_bounded,
    read_json_bounded,
    retry_after_s,
    retrying,
)
from moe_probe.core.text import printable
from moe_probe.recording.serving.settings import EXAMPLE, ServerSettings

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
#: Statuses that say nothing of the request: too many requests, no server behind the gateway, a server that starts.
_AWAY = (429, 502, 503)
#: Bytes of an answer that has no routing in it.
_SMALL = 1 << 22
_HINT = f"the server's address, such as --server {EXAMPLE}"


class UnansweredError(MoeProbeError):
    """One request got no usable answer in all its attempts; others may."""


class StoppedError(Exception):
    """A request was not sent: the collection ended."""


class ServerClient:
    """Sends requests to one server; a context manager, safe to share by threads.

    Parameters
    ----------
    settings : ServerSettings
        With an address.
    """

    def __init__(self, settings: ServerSettings) -> None:
        import httpx

        self.address, self._key = settings.root, settings.api_key()
        self.timeout_s, self.retries = settings.request_timeout, settings.retries
        self._stopped = threading.Event()
        # no proxies and no .netrc: requests go to the address that was given, and the key to nobody else
        self._http = bounded(
            httpx.Client(
                timeout=httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, 30.0)),
                limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
                headers=ACCEPTED | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                verify=ssl.create_default_context() if self.address.startswith("https") else False,
                trust_env=False,
            )
        )

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *reason: object) -> None:
        """Close the connections."""
        self.stop()
        self._http.close()

    def stop(self) -> None:
        """Send nothing more, and wait for no further attempt."""
        self._stopped.set()

    def get(self, path: str) -> Any:
        """Ask for a document of the server, once: it shows at once whether anybody is there.

        Parameters
        ----------
        path : str
            Behind the server's address.

        Returns
        -------
        object
            The JSON; None where the server has no such path.

        Raises
        ------
        MoeProbeError
            When the server cannot be reached, refuses, or answers with something else than JSON.
        """
        try:
            return self._attempt("GET", path, None, _SMALL)
        except RetryableError as failure:
            raise MoeProbeError(
                f"{self.address} does not answer",
                str(failure),
                "check the address and the port, and that the server has loaded the model",
            ) from None
        except _NoSuchPathError:
            return None

    def post(self, path: str, body: dict[str, Any], *, limit: int = 0, read: Callable[[Any], T]) -> T | None:
        """Send a request, again where it failed and may succeed.

        Parameters
        ----------
        path : str
            Behind the server's address.
        body : dict
            Sent as JSON.
        limit : int
            Bytes of the routing in the answer at most; what else is in it may be as large as `get` allows.
        read : callable
            Takes the JSON; raises `RetryableError` where the answer is worth another attempt.

        Returns
        -------
        object
            What `read` returns; None where the server has no such path.

        Raises
        ------
        UnansweredError
            When all attempts failed, and others may succeed.
        MoeProbeError
            When the server refuses the request, or is not there or overloaded in all attempts.
        """
        retry = retrying(self.retries, self._sleep)
        try:
            return retry(lambda: read(self._attempt("POST", path, body, _SMALL + limit)))
        except RetryableError as failure:
            gone = isinstance(failure, _AwayError)
            wait = f", and it asks to wait {failure.retry_after_s:,.0f} s" if failure.waits_too_long else ""
            raise (MoeProbeError if gone else UnansweredError)(
                f"{self.address} does not answer",
                f"{failure}{wait}, {retry.statistics['attempt_number']} times",
                "the same command with --resume, once it answers (whole shards are kept); or a smaller --concurrency",
            ) from None
        except _NoSuchPathError:
            return None

    def _attempt(self, method: str, path: str, body: dict[str, Any] | None, limit: int) -> Any:
        import httpx

        if self._stopped.is_set():
            raise StoppedError
        try:
            with (
                exchange(self.timeout_s),
                self._http.stream(method, f"{self.address}{path}", json=body) as response,
            ):
                if response.is_redirect:
                    raise self._redirected(response)
                content = read_bounded(response, limit=limit)
            return self._understood(response, content, path, limit)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _AwayError(hide_key(str(error), self._key) or "no connection") from error
        except httpx.TimeoutException as error:
            raise SlowError(f"no answer in {self.timeout_s:g} s") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise MoeProbeError(f"{self.address} is not an address", str(error), _HINT) from error
        except httpx.RequestError as error:  # refused and reset connections, answers that end too early, broken gzip
            raise RetryableError(hide_key(str(error), self._key) or type(error).__name__) from error

    def _understood(self, response: httpx.Response, content: bytes, path: str, limit: int) -> Any:
        """Return the JSON of an answer, or say what the status means; some gateways put the true one into the body."""
        status = response.status_code
        data = read_json_bounded(content, limit=limit)
        if status == 200:
            error = data.get("error") if isinstance(data, dict) else None
            code = error.get("code") if isinstance(error, dict) else None
            if isinstance(data, dict | list) and not error:
                return data
            status = code if isinstance(code, int) and code >= 400 else 200
        if is_retried(status):
            kind = _AwayError if status in _AWAY else RetryableError
            raise kind(f"status {status}", retry_after_s(response.headers.get("retry-after")))
        if status == 200 and content.lstrip()[:1] in (b"{", b"["):
            raise RetryableError("an answer that ends too early")
        shown = " ".join(printable(hide_key(content[:4000].decode(errors="replace"), self._key)).split())[:200]
        if status == 200:
            raise MoeProbeError(f"{self.address}{path} does not answer with JSON", f"it says: {shown}", _HINT)
        if status in (401, 403):
            raise MoeProbeError(
                f"{self.address} refuses the {'key' if self._key else 'request without a key'}",
                f"status {status}",
                "--server-key-env with the name of the variable that has the key",
            )
        if status in (404, 405) and not (isinstance(data, dict) and ("error" in data or data.get("object") == "error")):
            raise _NoSuchPathError(path)  # with an error object of the engine it is the model that is unknown
        raise MoeProbeError(
            f"{self.address} refuses the request to {path}",
            f"status {status}: {shown}",
            "--server-model, --engine and --max-length as the server requires them",
        )

    def _redirected(self, response: httpx.Response) -> MoeProbeError:
        target = urlsplit(response.headers.get("location", ""))
        host = printable(target.netloc.rpartition("@")[2])[:100] or "another path"
        return MoeProbeError(
            f"{self.address} redirects to {host}",
            "texts and key are sent to the given address only",
            "the final address as --server",
        )

    def _sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)


class _AwayError(RetryableError):
    """The server is not there, or too busy: no fault of the request."""


class _NoSuchPathError(Exception):
    """The server has no such path."""
