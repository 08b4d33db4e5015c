"""Answers of servers: of vLLM and SGLang while a corpus is collected, of a language model that labels features.

An answer is a file that a transport of httpx returns in place of the network, compressed where it is, with its status.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from attacks.inputs_records import routing
from attacks.readers import Reader, uses

_IMPORTS = ("httpx", "tenacity", "moe_probe.recording.serving.asking", "moe_probe.features.labels.llm")
_PROMPT = [11, 12, 13, 14]


def _reply(folder: Path, name: str) -> Any:
    import httpx

    def handle(_request: httpx.Request) -> httpx.Response:
        body = (folder / name).read_bytes() if (folder / name).is_file() else b""
        status = 200 if len(body) % 16 else 400 + len(body) // 16 % 120  # damage of another length changes the status too
        packed = {"content-encoding": "gzip"} if name.endswith(".gz") else {}
        return httpx.Response(status, headers=packed, stream=httpx.ByteStream(body))

    return httpx.MockTransport(handle)


def _write(path: Path, answer: Any) -> None:
    text = json.dumps(answer)
    text += " " * (not len(text) % 16)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())


def _answers(folder: Path) -> None:
    ids = routing(4)
    _write(folder / "models.json", {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 512}]})
    choice = {"token_ids": [5], "routed_experts": ids.tolist(), "prompt_token_ids": _PROMPT}
    _write(folder / "vllm.json", {"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": 1}})
    routed = base64.b64encode(ids.astype("<i4").tobytes()).decode()
    meta = {"prompt_tokens": 4, "completion_tokens": 1, "routed_experts": routed}
    _write(folder / "sglang.json.gz", {"output_ids": [5], "meta_info": meta})


def _read_answers(folder: Path) -> None:
    import httpx

    from moe_probe.core.schema import MoeLayer
    from moe_probe.recording.collect.windows import Window
    from moe_probe.recording.serving.asking import AskedServer
    from moe_probe.recording.serving.client import ServerClient
    from moe_probe.recording.serving.engines import Endpoint, Served, ask_server
    from moe_probe.recording.serving.layers import ServedLayers
    from moe_probe.recording.serving.settings import ServerSettings

    settings = ServerSettings(server="http://127.0.0.1:9", retries=0)
    layers = ServedLayers(tuple(MoeLayer(layer=i, name=f"layer {i}", num_experts=6, top_k=2) for i in range(2)), 2)

    def client(name: str) -> ServerClient:
        made = ServerClient(settings)
        made._http = httpx.Client(transport=_reply(folder, name))
        return made

    def ask(name: str, engine: str, path: str) -> None:
        with client(name) as asked:
            server = AskedServer(asked, settings, Served("m", [Endpoint(engine, path)], None, ""), layers)
            server.ask(Window(np.array(_PROMPT), slice(0, 4)), 1)

    def models() -> None:
        with client("models.json") as asked:
            ask_server(asked, settings)

    uses(
        models,
        lambda: ask("vllm.json", "vllm", "/v1/completions"),
        lambda: ask("sglang.json.gz", "sglang", "/generate"),
    )


def _labels(folder: Path) -> None:
    for name, content in {"label.json": '{"label": "acids"}', "fires.json.gz": 'Hm. {"fires": [1, 3]}'}.items():
        _write(folder / name, {"id": "1", "choices": [{"message": {"role": "assistant", "content": content}}]})


def _read_labels(folder: Path) -> None:
    import httpx

    from moe_probe.features.labels.endpoint import Client, Endpoint, Request
    from moe_probe.features.labels.llm import _read_label, _read_numbers

    def ask(name: str, read: Any) -> None:
        endpoint = Endpoint("http://127.0.0.1:9/v1", "m", api_key="a-long-secret", retries=0)
        cache = folder.parent / "out.jsonl"
        cache.unlink(missing_ok=True)
        with Client(endpoint, cache) as client:
            client._http = httpx.Client(transport=_reply(folder, name))
            client.ask(Request([{"role": "user", "content": "x"}], 10), read)

    uses(lambda: ask("label.json", _read_label), lambda: ask("fires.json.gz", lambda text: _read_numbers(text, 4)))


READERS = (
    Reader("server-answers", _answers, _read_answers, _IMPORTS),
    Reader("label-answers", _labels, _read_labels, _IMPORTS),
)
