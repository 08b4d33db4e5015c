"""Servers that answer with too much, too slowly or something else: of engines that are recorded, of models that label."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.http import read_json_bounded
from moe_probe.features.labels.endpoint import Client, Endpoint, Request
from moe_probe.recording.serving.client import ServerClient, UnansweredError
from moe_probe.recording.serving.engines import UnroutedError, read_sequence
from moe_probe.recording.serving.settings import ServerSettings

pytest.importorskip("httpx")
Answer = Callable[[socket.socket], None]


class Raw:
    """A server that writes bytes as a test wants."""

    def __init__(self) -> None:
        self.answer: Answer = lambda connection: None
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                self.asked.append(whole_request(connection))
                self.answer(connection)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


def whole_request(connection: socket.socket) -> bytes:
    """Read head and body: a socket that is closed with bytes unread resets the connection, and the answer may be lost."""
    said = b""
    while b"\r\n\r\n" not in said and (more := connection.recv(1 << 16)):
        said += more
    head, _, rest = said.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    while length and len(rest) < int(length[1]) and (more := connection.recv(1 << 16)):
        said, rest = said + more, rest + more
    return said


@pytest.fixture
def raw() -> Iterator[Raw]:
    server = Raw()
    yield server
    server.close()


def body(data: bytes, **headers: str) -> Answer:
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return lambda connection: connection.sendall(
        f"HTTP/1.1 200 OK\r\n{named}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data
    )


def ask_engine(raw: Raw, **more: Any) -> Any:
    with ServerClient(ServerSettings(server=raw.url, retries=0, **more)) as client:
        return client.post("/generate", {}, limit=1000, read=lambda answer: answer)


def ask_model(raw: Raw, folder: Path, **more: Any) -> Any:
    endpoint = Endpoint(f"{raw.url}/v1", "m", api_key="a-long-secret", retries=0, **more)
    with Client(endpoint, folder / "cache.jsonl") as client:
        return client.ask(Request([{"role": "user", "content": "x"}], 10), lambda text: text)


def label(content: str = "acids") -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data, wbits=-15)),
        ("identity", bytes),
    ],
)
def test_compressed_answers_are_read(raw: Raw, tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    text = "acids " * 30_000  # over several pieces
    raw.answer = body(pack(label(text)), Content_Encoding=encoding)
    assert ask_model(raw, tmp_path) == text
    assert b"gzip, deflate\r\n" in raw.asked[0]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_unpacks_to_very_much(raw: Raw, tmp_path: Path, encoding: str) -> None:
    blanks = b" " * 50_000_000
    raw.answer = body(
        gzip.compress(blanks, 1) if encoding == "gzip" else zlib.compress(blanks, 1), Content_Encoding=encoding
    )
    with pytest.raises(MoeProbeError, match=r"answers with 4,2\d\d,\d{3} bytes or more.*4,194,304 at most"):
        ask_model(raw, tmp_path)
    with pytest.raises(MoeProbeError, match=r"answers with 4,\d{3},\d{3} bytes or more.*4,195,304 at most"):
        ask_engine(raw)


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(label(), mtime=0)[:-9], gzip.compress(label(), mtime=0)[:20] + b"\xff" * 40, b"none"],
    ids=["ends", "damaged", "none"],
)
def test_damaged_compression_counts_as_no_answer(raw: Raw, tmp_path: Path, packed: bytes) -> None:
    raw.answer = body(packed, Content_Encoding="gzip")
    with pytest.raises(MoeProbeError, match=r"does not answer.*gzip (is damaged|ends too early)"):
        ask_model(raw, tmp_path)
    with pytest.raises(UnansweredError, match="gzip"):
        ask_engine(raw)


@pytest.mark.parametrize("declared", ["99999999999", "9" * 400])
def test_declared_sizes_are_checked_first(raw: Raw, tmp_path: Path, declared: str) -> None:
    raw.answer = lambda connection: connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {declared}\r\n\r\n{{".encode())
    with pytest.raises(MoeProbeError, match=r"answers with|does not answer"):
        ask_model(raw, tmp_path, timeout_s=2)


def drip(connection: socket.socket, head: bytes) -> None:
    connection.sendall(head)
    for _ in range(200):
        connection.sendall(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Slow:", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_slow_drip_ends_with_the_exchange(raw: Raw, tmp_path: Path, head: bytes) -> None:
    raw.answer = lambda connection: drip(connection, head)
    started = time.monotonic()
    with pytest.raises(MoeProbeError, match=r"does not answer: no whole answer in 0\.4 s"):
        ask_model(raw, tmp_path, timeout_s=0.4)
    with pytest.raises(UnansweredError, match=r"no answer in 0\.4 s"):
        ask_engine(raw, request_timeout=0.4)
    assert time.monotonic() - started < 6  # of ten seconds that each drip takes


def test_a_redirect_is_not_followed(raw: Raw, tmp_path: Path) -> None:
    other = Raw()
    other.answer = body(label())
    raw.answer = lambda connection: connection.sendall(
        f"HTTP/1.1 307 There\r\nLocation: {other.url}/v1\r\nContent-Length: 0\r\n\r\n".encode()
    )
    with pytest.raises(MoeProbeError, match="status 307"):
        ask_model(raw, tmp_path)
    with pytest.raises(MoeProbeError, match="redirects to"):
        ask_engine(raw)
    other.close()
    assert not other.asked


def test_brackets_of_an_answer_are_counted_before_they_are_read() -> None:
    content = b"[" + b"{}," * 1_500_000 + b"1]"
    with pytest.raises(MoeProbeError, match=r"would take 0\.4 GB of memory"):
        read_json_bounded(content, limit=1 << 20)
    assert read_json_bounded(b"[[1, 2], 3]", limit=0) == [[1, 2], 3]
    assert read_json_bounded(b"[" * 100_000, limit=1 << 24) is None


def test_an_answer_may_not_claim_more_tokens_than_were_asked_for() -> None:
    answer = {"choices": [{"routed_experts": [[[0, 1]]] * 2}], "usage": {"prompt_tokens": 2, "completion_tokens": 10**9}}
    with pytest.raises(UnroutedError, match="claims 1,000,000,000 generated tokens, 1 were asked for"):
        read_sequence(answer, np.array([1, 2]), max_new_tokens=1, n_columns=1, top_k=2)
