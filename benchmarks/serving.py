"""How many tokens a second `collect --server` takes in: a stand-in answers at once, so that the client alone sets the pace.

The routing has the shape of Qwen3-30B-A3B: 48 layers, 128 experts, 8 per token; texts of about 1,000 tokens. Run it as
``python benchmarks/serving.py``; it prints tokens a second and seconds of this process's CPU per million tokens.
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

LAYERS, EXPERTS, TOP_K = 48, 128, 8
WORDS, DOCUMENTS = 1000, 300


def serve(form: str, pipe: Connection) -> None:
    """Answer every prompt with the same routing, cut to its length."""
    rng = np.random.default_rng(0)
    rows = np.argsort(rng.random((WORDS + 8, LAYERS, EXPERTS), dtype=np.float32), axis=2)[:, :, :TOP_K]
    made: dict[int, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(json.dumps({"data": [{"id": "m", "owned_by": form}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            n = len(body.get("prompt") or body["input_ids"])
            if n not in made:
                made[n] = answer(form, rows[:n], n)
            self.send(made[n])

        def send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


def answer(form: str, rows: np.ndarray, n: int) -> bytes:
    """Write an answer as an engine does."""
    usage = {"prompt_tokens": n, "completion_tokens": 1}
    if form == "sglang":
        data = base64.b64encode(rows.astype("<i4").tobytes()).decode()
        return json.dumps({"output_ids": [5], "meta_info": usage | {"routed_experts": data}}).encode()
    file = io.BytesIO()
    np.save(file, rows.astype(np.int32))
    choice = {"token_ids": [5], "routed_experts": base64.b64encode(file.getvalue()).decode()}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write a configuration with a tokenizer of words, and a corpus."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, **{f"w{i}": i + 1 for i in range(2000)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    model = folder / "model"
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(model)
    transformers.Qwen3MoeConfig(
        vocab_size=2001,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=4096,
        architectures=["Qwen3MoeForCausalLM"],
    ).save_pretrained(model)
    rng, corpus = np.random.default_rng(1), folder / "corpus.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for i in range(DOCUMENTS):
            text = " ".join(f"w{w}" for w in rng.integers(0, 2000, WORDS - int(rng.integers(0, 20))))
            file.write(json.dumps({"id": f"d{i}", "topic": f"t{i % 3}", "text": text}) + "\n")
    return model, corpus


def main() -> None:
    """Print the table."""
    from moe_probe.models.settings import ModelSettings
    from moe_probe.recording.serving import ServerSettings, collect_from_server
    from moe_probe.recording.settings import CorpusSettings

    print("engine  kept     tokens/s  CPU s per million tokens")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, corpus = prepare(folder)
        for form in ("vllm", "sglang"):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=serve, args=(form, theirs), daemon=True)
            process.start()
            url = f"http://127.0.0.1:{ours.recv()}"
            for keep in ("routing", "usage"):
                from moe_probe.recording.settings import CollectOptions

                wall, cpu = time.perf_counter(), time.process_time()
                trace = collect_from_server(
                    ModelSettings(name=str(model)),
                    CorpusSettings(source=str(corpus)),
                    folder / f"{form}-{keep}",
                    server=ServerSettings(server=url),
                    options=CollectOptions(keep=(keep,)),
                    say=lambda sentence: None,
                    progress=False,
                )
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                n = trace.n_tokens
                print(f"{form:7} {keep:8} {n / wall:8,.0f}  {cpu / n * 1e6:.1f}", flush=True)
            process.kill()


if __name__ == "__main__":
    main()
