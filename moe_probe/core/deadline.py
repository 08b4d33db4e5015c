"""A limit to the time of a whole exchange with a server, whatever it sends and however slowly.

An HTTP library's time-outs are those of one wait. A server that sends a byte now and then never exceeds them, neither in its
headers nor in its body. Here every wait of an exchange ends at the latest with the exchange itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

_ENDS: ContextVar[float | None] = ContextVar("ends", default=None)


@contextmanager
def exchange(seconds: float) -> Iterator[None]:
    """Let the requests inside the ``with`` block, of a client that was `bounded`, take so long together.

    Parameters
    ----------
    seconds : float

    Yields
    ------
    None

    Raises
    ------
    httpx.TimeoutException
        By the request that takes longer.
    """
    token = _ENDS.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ENDS.reset(token)


def bounded(client: httpx.Client) -> httpx.Client:
    """Make the waits of a client end with their `exchange`.

    Parameters
    ----------
    client : httpx.Client
        Its connections, to proxies too, are made by a network backend that looks at the time.

    Returns
    -------
    httpx.Client
        The same.
    """
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None:  # a transport of tests has none
            pool._network_backend = _backend(pool._network_backend)
    return client


def _left(timeout: float | None, late: type[Exception]) -> float | None:
    """Seconds that a wait may take."""
    ends = _ENDS.get()
    if ends is None:
        return timeout
    left = ends - time.monotonic()
    if left <= 0:
        raise late("the exchange takes too long")
    return left if timeout is None else min(timeout, left)


def _backend(inner: Any) -> Any:
    import httpcore

    class Stream(httpcore.NetworkStream):
        """A connection whose waits end with the exchange."""

        def __init__(self, stream: httpcore.NetworkStream) -> None:
            self._stream = stream

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            self._stream.write(buffer, _left(timeout, httpcore.WriteTimeout))

        def close(self) -> None:
            self._stream.close()

        def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Stream:
            left = _left(timeout, httpcore.ConnectTimeout)
            return Stream(self._stream.start_tls(ssl_context, server_hostname, left))

        def get_extra_info(self, info: str) -> Any:
            return self._stream.get_extra_info(info)

    class Backend(httpcore.NetworkBackend):
        """Makes such connections."""

        def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Iterable[Any] | None = None,
        ) -> Stream:
            left = _left(timeout, httpcore.ConnectTimeout)
            return Stream(inner.connect_tcp(host, port, left, local_address, socket_options))

        def connect_unix_socket(
            self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
        ) -> Stream:
            return Stream(inner.connect_unix_socket(path, _left(timeout, httpcore.ConnectTimeout), socket_options))

        def sleep(self, seconds: float) -> None:
            inner.sleep(seconds)

    return Backend()
