"""Requests to a server that the user named: checked addresses, failed requests tried again, answers of bounded size."""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.textfiles.limits import json_memory

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState, Retrying

#: The longest that a server may make a request wait before it counts as not answering.
LONGEST_WAIT_S = 120.0
#: Keys shorter than this are placeholders of local servers ("EMPTY"); cutting them out would spoil answers.
_SHORTEST_SECRET = 8
_RETRIED = (408, 409, 425, 429)
#: Encodings that expand little per byte received; others can turn a packet into gigabytes before it is counted.
_ENCODINGS = ("", "identity", "gzip", "deflate")
#: Header of every request: what `read_bounded` can unpack piece by piece.
ACCEPTED = {"Accept-Encoding": "gzip, deflate"}
#: Memory that the values of an answer may take, beside four times what the answer itself may be long.
_VALUES = 1 << 28
_PIECE = 1 << 16


class RetryableError(Exception):
    """One attempt failed, and another may not.

    Parameters
    ----------
    problem : str
    retry_after_s : float, optional
        Seconds that the server asks to wait.
    """

    #: Further attempts that failures of this kind are worth; None for as many as there are.
    worth: int | None = None

    def __init__(self, problem: str, retry_after_s: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s

    @property
    def waits_too_long(self) -> bool:
        """Whether the server asks for a longer wait than `LONGEST_WAIT_S`."""
        return self.retry_after_s is not None and self.retry_after_s > LONGEST_WAIT_S


class SlowError(RetryableError):
    """An answer did not come in time: many more attempts would take hours."""

    worth = 2


def check_address(url: str, what: str, example: str) -> None:
    """Refuse an address that cannot be used, or that would show a secret in messages.

    Parameters
    ----------
    url : str
    what : str
        Whose address it is, for the message: "the endpoint".
    example : str
        An address that could be used.

    Raises
    ------
    MoeProbeError
        Without http(s) or a host; or with a user, a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise MoeProbeError(f"{what}'s address cannot be used", "it needs http:// or https:// and a host", example)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise MoeProbeError(
            f"{what}'s address cannot be used",
            "it has a user, a password, ? or #, which messages would show",
            "the plain address, and the key in an environment variable",
        )


def check_key(key: str) -> None:
    """Refuse an API key that no header can carry.

    Raises
    ------
    MoeProbeError
        When it has a space, a line break or a character outside ASCII: an HTTP library would name it in full.
    """
    if not all("!" <= c <= "~" for c in key):
        raise MoeProbeError(
            "the API key cannot be sent",
            "it has a space, a line break or a character outside ASCII",
            "setting the variable again without them",
        )


def hide_key(text: str, key: str) -> str:
    """Remove a key from a text, unless it is as short as the placeholders of local servers.

    Parameters
    ----------
    text, key : str

    Returns
    -------
    str
    """
    return text.replace(key, "(key)") if len(key) >= _SHORTEST_SECRET else text


def is_retried(status: int) -> bool:
    """Whether a request of this HTTP status is worth another attempt: 408, 409, 425, 429 and 5xx."""
    return status in _RETRIED or status >= 500


def retrying(retries: int, sleep: Callable[[float], None]) -> Retrying:
    """Build a caller that repeats what raises `RetryableError`.

    It waits as long as the server asks, else 1, 2, 4 ... seconds up to a minute, with some chance in it; it gives up at once
    where the server asks for more than `LONGEST_WAIT_S`.

    Parameters
    ----------
    retries : int
        Further attempts after the first.
    sleep : callable
        Waits for some seconds.

    Returns
    -------
    tenacity.Retrying
        Call it with a function and its arguments. It raises the last `RetryableError`.
    """
    import tenacity

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetryableError),
        stop=lambda state: _is_enough(state, retries),
        wait=_wait_s,
        sleep=sleep,
        reraise=True,
    )


def retry_after_s(header: str | None) -> float | None:
    """Read a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3).

    Parameters
    ----------
    header : str or None

    Returns
    -------
    float or None
        Seconds from now, not negative; None where it says nothing that can be read.
    """
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            until = parsedate_to_datetime(header or "")
        except ValueError:
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def read_bounded(response: httpx.Response, *, limit: int) -> bytes:
    """Read the body of a streamed response, as far as its size allows.

    Parameters
    ----------
    response : httpx.Response
        Of ``client.stream``, its body not yet read. `moe_probe.core.deadline` bounds the time.
    limit : int
        Bytes at most, unpacked. The size that the header declares is checked before anything is read; what is compressed is
        unpacked piece by piece.

    Returns
    -------
    bytes

    Raises
    ------
    RetryableError
        When what is compressed is damaged or cut off.
    MoeProbeError
        When it is larger, or in an encoding whose size cannot be bounded.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise MoeProbeError(
            f"{response.url.host} answers in the encoding {encoding[:40]}",
            "only gzip and deflate are read, which bounds the size of an answer",
            "a server or gateway that does not compress",
        )
    declared = response.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
        raise _too_large(response, int(declared), limit)
    size, pieces = 0, []
    for piece in _unpacked(response.iter_raw(), encoding):
        size += len(piece)
        if size > limit:
            raise _too_large(response, size, limit)
        pieces.append(piece)
    return b"".join(pieces)


def _unpacked(raw: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Unpack a stream in pieces of bounded size, as RFC 9110 (8.4.1) has it: deflate is zlib's format, or bare."""
    if encoding in ("", "identity"):
        yield from raw
        return
    unpacker = None
    try:
        for packed in raw:
            if unpacker is None and packed:
                bare = encoding == "deflate" and packed[0] & 0x0F != zlib.DEFLATED
                unpacker = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
            rest = packed
            while unpacker is not None and rest and not unpacker.eof:
                yield unpacker.decompress(rest, _PIECE)
                rest = unpacker.unconsumed_tail
        while unpacker is not None and not unpacker.eof and (piece := unpacker.decompress(b"", _PIECE)):
            yield piece
    except zlib.error as error:
        raise RetryableError(f"an answer whose {encoding} is damaged: {error}") from error
    if unpacker is not None and not unpacker.eof:
        raise RetryableError(f"an answer whose {encoding} ends too early")


def read_json_bounded(content: bytes, *, limit: int) -> Any:
    """Read the JSON of an answer, unless its values would take much more memory than an answer needs.

    Parameters
    ----------
    content : bytes
    limit : int
        Bytes that the answer may have.

    Returns
    -------
    object
        None where it is no JSON.

    Raises
    ------
    MoeProbeError
        When brackets and commas are so many that the values would take more than 256 MB and four times the limit.
    """
    if (needed := json_memory(content)) > _VALUES + 4 * limit:
        raise MoeProbeError(
            f"the server's answer would take {needed / 1e9:.1f} GB of memory",
            f"it has {len(content):,} bytes with very many brackets",
            "check that the address is that of the inference server",
        )
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _too_large(response: httpx.Response, size: int, limit: int) -> MoeProbeError:
    return MoeProbeError(
        f"{response.url.host} answers with {size:,} bytes or more",
        f"an answer to this request has {limit:,} at most",
        "check that the address is that of the inference server",
    )


def _failure(state: RetryCallState) -> RetryableError:
    """Return why the last attempt failed."""
    error = state.outcome.exception() if state.outcome is not None else None
    return error if isinstance(error, RetryableError) else RetryableError("")


def _is_enough(state: RetryCallState, retries: int) -> bool:
    failure = _failure(state)
    most = retries if failure.worth is None else min(retries, failure.worth)
    return state.attempt_number > most or failure.waits_too_long


def _wait_s(state: RetryCallState) -> float:
    """Back off as long as the server asks, else 1, 2, 4 ... seconds, with some chance in it."""
    if (asked := _failure(state).retry_after_s) is not None:
        return asked * random.uniform(1.0, 1.1)
    return min(2.0 ** (state.attempt_number - 1), 60.0) * random.uniform(0.5, 1.0)
