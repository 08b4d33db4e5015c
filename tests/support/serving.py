"""A stand-in for vLLM and SGLang: runs the tiny model for true routing, and speaks their documented formats and failures."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from moe_probe.models import LoadedModel, RoutingCapture


class Run(NamedTuple):
    """What the model did with a prompt: generated ids, and rows (all tokens but the last generated, hidden layers, slots)."""

    prompt: list[int]
    new: list[int]
    rows: np.ndarray


class Reply(NamedTuple):
    """An answer that is no ordinary one."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    declared: int | None = None


#: Sees the number of a request to run a prompt and its body; None for the ordinary answer.
Trouble = Callable[[int, dict[str, Any]], Reply | None]


#: What models did with prompts: by fingerprint, prompt and number of new tokens.
_RUNS: dict[tuple[str, tuple[int, ...], int], Run] = {}


class StandIn(ThreadingHTTPServer):
    """Attributes may be changed between requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, loaded: LoadedModel, form: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.loaded, self.form = loaded, form
        self.lock = threading.Lock()
        self.trouble: Trouble = lambda number, body: None
        self.routing = True
        self.bos: int | None = None
        self.truncate: int | None = None
        self.models = ["tiny"]
        self.max_model_len: int | None = None
        self.owner = {"vllm": "vllm", "vllm21": "vllm", "sglang": "sglang", "sglang_openai": "sglang"}[form]
        self.asked: list[dict[str, Any]] = []
        self.keys: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def late(self, seconds: float) -> None:
        """Let a client wait."""
        self.closing.wait(seconds)

    def run(self, ids: list[int], max_new: int) -> Run:
        """Greedy decoding; the routing of each token is that of the pass over the sequence so far."""
        prompt = ([self.bos] if self.bos is not None else []) + ids
        prompt = prompt[: self.truncate] if self.truncate else prompt
        key = (self.loaded.info.fingerprint, tuple(prompt), max_new)
        if key not in _RUNS:
            _RUNS[key] = self._run(prompt, max_new)
        return _RUNS[key]

    def _run(self, prompt: list[int], max_new: int) -> Run:
        sequence, new = list(prompt), []
        with self.lock, torch.inference_mode(), RoutingCapture(self.loaded.model, self.loaded.sites) as capture:
            for _ in range(max_new):
                logits = self.loaded.model(input_ids=torch.tensor([sequence]), use_cache=False).logits
                records = capture.take()
                new.append(int(logits[0, -1].argmax()))
                sequence.append(new[-1])
        rows = np.zeros(
            (len(sequence) - 1, self.loaded.model.config.num_hidden_layers, records[0].experts.shape[1]), dtype=np.int32
        )
        for site, record in zip(self.loaded.sites, records, strict=True):
            rows[:, site.info.layer] = record.experts.numpy()  # layers without experts stay zeros
        return Run(prompt, new, rows)

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The JSON of an ordinary answer; None for a path that this engine does not have."""
        if self.form == "sglang" and path == "/generate":
            run = self.run(body["input_ids"], body["sampling_params"]["max_new_tokens"])
            meta: dict[str, Any] = {"id": "1", "prompt_tokens": len(run.prompt), "completion_tokens": len(run.new)}
            if self.routing and body.get("return_routed_experts"):
                meta["routed_experts"] = base64.b64encode(run.rows.astype("<i4").tobytes()).decode()
            return {"text": "x", "output_ids": run.new, "meta_info": meta}
        if path != "/v1/completions" or self.form == "sglang":
            return None
        run = self.run(body["prompt"], body["max_tokens"])
        usage = {"prompt_tokens": len(run.prompt), "completion_tokens": len(run.new)}
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
        answer: dict[str, Any] = {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage}
        if self.form == "sglang_openai":
            if self.routing and body.get("return_routed_experts"):
                answer["sglext"] = {"routed_experts": base64.b64encode(run.rows.astype("<i4").tobytes()).decode()}
            return answer
        if body.get("return_token_ids"):
            choice |= {"prompt_token_ids": run.prompt, "token_ids": run.new}
        if self.form == "vllm21":  # nested lists, the prompt apart, a row for the last token that no pass was made with
            rows = np.concatenate([run.rows, np.zeros_like(run.rows[:1])])
            n = len(run.prompt)
            answer["prompt_routed_experts"] = rows[:n].tolist() if self.routing else None
            choice["routed_experts"] = rows[n:].tolist() if self.routing else None
        else:
            file = io.BytesIO()
            np.save(file, run.rows.astype(np.uint8))
            choice["routed_experts"] = base64.b64encode(file.getvalue()).decode() if self.routing else None
        return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        served = self.server
        if self.path == "/v1/models":
            more = {"max_model_len": served.max_model_len} if served.max_model_len else {}
            models = [{"id": name, "owned_by": served.owner, **more} for name in served.models]
            self._send(Reply(body=json.dumps({"object": "list", "data": models}).encode()))
        elif self.path == "/version" and served.owner == "vllm":
            self._send(Reply(body=b'{"version": "0.22.1"}'))
        else:
            self._send(Reply(404, b'{"detail": "Not Found"}'))

    def do_POST(self) -> None:
        served = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with served.lock:
            served.asked.append(body)
            number = len(served.asked)
            served.keys[self.headers.get("authorization", "")] += 1
            served.under_way += 1
            served.most_under_way = max(served.most_under_way, served.under_way)
        try:
            reply = served.trouble(number, body)
            if reply is None:
                data = served.answer(self.path, body)
                reply = Reply(404, b'{"detail": "Not Found"}') if data is None else Reply(body=json.dumps(data).encode())
            self._send(reply)
        finally:
            with served.lock:
                served.under_way -= 1

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply.body) if reply.declared is None else reply.declared))
        self.end_headers()
        self.wfile.write(reply.body)
        if reply.declared is not None and reply.declared > len(reply.body):
            self.close_connection = True

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # whoever asked has gone
            self.close_connection = True

    def log_message(self, *words: object) -> None:
        """Keep quiet."""


@contextmanager
def standing_in(loaded: LoadedModel, form: str = "vllm") -> Iterator[StandIn]:
    """A server in a thread."""
    server = StandIn(loaded, form)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def prompt_of(body: dict[str, Any]) -> list[int]:
    """Token ids of a request of either engine."""
    return list(body.get("prompt") or body["input_ids"])


def write_dense_checkpoint(folder: Path, checkpoint: Path) -> Path:
    """A model of another family whose first layer is dense, with the tokenizer of the tiny checkpoint."""
    import transformers

    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.Qwen3MoeConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=16,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=32,
        mlp_only_layers=[0],
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=None,
    )
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder
