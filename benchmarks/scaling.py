"""Weak scaling of collecting in parts, and an estimate for a large model.

    python benchmarks/scaling.py [--model data/model/final] [--corpus data/probe_corpus.jsonl] [--parts 1 2 4 8]
    python benchmarks/scaling.py --estimate [--tokens 1e9] [--rate 32000] [--price 3.5]

Weak scaling: the corpus grows with the number of parts, and each part is a process of its own with one thread
(``collect --shard i/n``), as many at a time as the machine has cores. What has to stay the same is the processor time per
token: collecting, reading the whole corpus (every process does, to know its hash and its cut), and start-up (imports, loading
the model). The parts are merged, and with ``--check`` compared with the trace of one process.

Estimate: hours, bytes and price of recording a corpus with a model of given shape. Nothing is run but a small synthetic
trace, which shows the size of the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_corpus(source: Path, path: Path, times: int, documents: int) -> None:
    """Write the first documents of a corpus `times` over, under new ids."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:documents]]
    with path.open("w", encoding="utf-8") as file:
        for number in range(times):
            file.writelines(json.dumps(row | {"id": f"{number}/{row['id']}"}) + "\n" for row in rows)


def collect_part(
    model: str, corpus_path: str, out: str, part: tuple[int, int] | None, shard_tokens: int
) -> dict[str, float]:
    """Collect one part in this process, and take its processor time apart (seconds)."""
    import torch

    torch.set_num_threads(1)
    from moe_probe.models import load_model
    from moe_probe.recording.collect import CollectOptions, collect_trace
    from moe_probe.recording.corpus import Corpus

    loaded = load_model(model, dtype="float32", progress=False)  # bfloat16 takes long on processors without units for it
    ready, corpus = time.process_time(), Corpus(corpus_path)
    corpus.summarize()
    read = time.process_time()
    options = CollectOptions(shard_tokens=shard_tokens)
    trace = collect_trace(loaded, corpus, out, options=options, shard=part, progress=False)
    done = time.process_time()
    return {"tokens": trace.n_tokens, "start": ready, "read": read - ready, "collect": done - read}


def run_parts(options: argparse.Namespace, corpus: Path, folder: Path, n: int) -> list[dict[str, float]]:
    """Run every part as a process, as many at a time as there are cores."""
    base = [sys.executable, __file__, "--model", options.model, "--corpus", str(corpus)]
    base += ["--shard-tokens", str(options.shard_tokens)]
    waiting = [[*base, "--part", f"{i}/{n}", "--out", str(folder / f"part-{i}")] for i in range(n)]
    running: list[subprocess.Popen[str]] = []
    found = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(subprocess.Popen(waiting.pop(0), stdout=subprocess.PIPE, text=True, env=environment))
        process = running.pop(0)
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a part ended with status {process.returncode}")
        found.append(json.loads(said.splitlines()[-1]))
    return found


def weak_scaling(options: argparse.Namespace) -> None:
    """Print the table."""
    from moe_probe.recording.trace import merge_traces

    print("| parts | tokens | CPU s per 1,000 tokens | collecting | reading the corpus | start-up | merging, s |")
    print("|---|---|---|---|---|---|---|")
    for n in options.parts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_corpus(Path(options.corpus), folder / "corpus.jsonl", n, options.documents)
            parts = run_parts(options, folder / "corpus.jsonl", folder, n)
            started = time.perf_counter()
            merged = merge_traces([folder / f"part-{i}" for i in range(n)], folder / "merged")
            merging = time.perf_counter() - started
            tokens = sum(part["tokens"] for part in parts)
            each = {key: 1000 * sum(part[key] for part in parts) / tokens for key in ("collect", "read", "start")}
            cells = [f"{each[key]:.4f}" for key in ("collect", "read", "start")]
            print(f"| {n} | {tokens:,.0f} | {sum(each.values()):.4f} | {' | '.join(cells)} | {merging:.2f} |", flush=True)
            if options.check:
                collect_part(options.model, str(folder / "corpus.jsonl"), str(folder / "one"), None, options.shard_tokens)
                one, other = ((folder / place / "trace.json").read_bytes() for place in ("one", "merged"))
                print(f"{n} parts equal one process: {one == other} ({len(merged.manifest.shards)} shards)", file=sys.stderr)


@dataclass(frozen=True)
class Shape:
    """What an estimate takes of a model: Qwen3-30B-A3B by default (arXiv:2505.09388)."""

    layers: int = 48
    experts: int = 128
    top_k: int = 8
    d_model: int = 2048


@dataclass(frozen=True)
class Assumptions:
    """What an estimate rests on; every one is an option.

    Attributes
    ----------
    tokens : float
        Of the corpus.
    document : int
        Tokens of a document: counts per document, layer and expert are kept, so that short documents cost more.
    rate : float
        Tokens per second of a plain forward pass on one device.
    overhead : float
        Time of collecting over that of the plain forward pass.
    start : float
        Seconds of a process before its first batch: imports, loading, fingerprint, self-check.
    text : float
        Bytes of text per token.
    reading : float
        Bytes of text per second at which a process reads the whole corpus: to check and hash it, and to pass over what
        comes before its part.
    price : float
        Dollars per device and hour.
    """

    tokens: float = 1e9
    document: int = 1000
    rate: float = 32_000.0
    overhead: float = 1.05
    start: float = 300.0
    text: float = 4.4
    reading: float = 10e6
    price: float = 3.5


def hours(given: Assumptions, devices: int) -> float:
    """Wall-clock hours of collecting on some devices at once: start-up, the whole corpus read, an equal share of tokens each."""
    reading = given.tokens * given.text / given.reading
    return (given.start + reading + given.tokens * given.overhead / given.rate / devices) / 3600


def bytes_per_token(shape: Shape, given: Assumptions) -> dict[str, float]:
    """Bytes on disk per token, by what is kept.

    Ids take one byte a slot up to 255 experts and two beyond, weights two, vectors two a number. Tables are compressed: they
    are measured on synthetic routing (Zipf's law over experts, other for each document) of this shape.
    """
    slots = shape.layers * shape.top_k
    ids = slots * (1 if shape.experts < 256 else 2)
    tables = table_bytes(shape, given.document)
    return {
        "ids": ids,
        "weights": 2 * slots,
        "table of tokens": tables["tokens.parquet"],
        "documents and usage": tables["documents.parquet"] + tables["usage.parquet"],
        "vectors of one layer": 2 * shape.d_model + 8,
    }


def table_bytes(shape: Shape, document: int) -> dict[str, float]:
    """Bytes per token of a trace's tables, from a synthetic trace of 20 documents."""
    import numpy as np

    from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer
    from moe_probe.recording.trace import TraceWriter

    rng = np.random.default_rng(0)
    layers = tuple(
        MoeLayer(layer=i, name=f"model.layers.{i}.mlp", num_experts=shape.experts, top_k=shape.top_k)
        for i in range(shape.layers)
    )
    dtype = "uint8" if shape.experts < 256 else "uint16"
    manifest = Manifest(
        model=ModelInfo(id="synthetic"), corpus=CorpusInfo(name="synthetic"), layers=layers, expert_dtype=dtype
    )
    n, documents = 20 * document, 20
    popularity = np.log(1 / np.arange(1, shape.experts + 1))
    experts = np.empty((n, shape.layers, shape.top_k), dtype=dtype)
    for row in range(documents):
        favour = rng.permuted(np.tile(popularity, (shape.layers, 1)), axis=1)
        for layer in range(shape.layers):
            keys = favour[layer] + rng.gumbel(size=(document, shape.experts))
            experts[row * document : (row + 1) * document, layer] = np.argsort(-keys, axis=1)[:, : shape.top_k]
    vocabulary = np.minimum(rng.zipf(1.2, n), 150_000)
    words = [f" {''.join(rng.choice(list('etaoinshrdlu'), rng.integers(2, 9)))}" for _ in range(5000)]
    with tempfile.TemporaryDirectory() as folder:
        writer = TraceWriter.create(Path(folder) / "t", manifest)
        writer.append(
            documents=[
                {"document": f"{i:07d}", "topic": "t", "subtopic": "", "group": f"{i:07d}", "split": ""}
                for i in range(documents)
            ],
            tokens={
                "document": np.repeat(np.arange(documents), document),
                "position": np.tile(np.arange(document), documents),
                "token_id": vocabulary,
                "token": [words[i % 5000] for i in vocabulary],
                "special": np.zeros(n, dtype=bool),
            },
            experts=experts,
            weights=rng.dirichlet(np.ones(shape.top_k), (n, shape.layers)).astype(np.float16),
        )
        trace = writer.seal()
        return {f.path: f.size / n for f in trace.manifest.files}


def estimate(given: Assumptions, shape: Shape) -> None:
    """Print the tables."""
    print(
        f"{shape.layers} MoE layers, {shape.experts} experts, top-{shape.top_k}, d {shape.d_model}; {given.tokens:.3g} tokens"
    )
    print(f"Assumed: {given}\n")
    print("| devices | hours | device-hours | dollars |\n|---|---|---|---|")
    for devices in (1, 8, 64):
        each = hours(given, devices)
        print(f"| {devices} | {each:,.2f} | {each * devices:,.1f} | {each * devices * given.price:,.0f} |")
    size = bytes_per_token(shape, given)
    routing = size["ids"] + size["weights"]
    tables, usage = size["table of tokens"] + size["documents and usage"], size["documents and usage"]
    kept = {
        "usage alone (--keep usage)": usage,
        "ids and weights (default)": routing + tables,
        "of these: ids": size["ids"],
        "of these: weights": size["weights"],
        "of these: table of tokens": size["table of tokens"],
        "of these: documents (without text) and usage": usage,
        "vectors of one layer, 10 % of tokens, in addition": 0.1 * size["vectors of one layer"],
        f"vectors of all {shape.layers} layers, 10 % of tokens, in addition": 0.1
        * shape.layers
        * size["vectors of one layer"],
    }
    print("\n| kept | bytes per token | all |\n|---|---|---|")
    for name, each in kept.items():
        print(f"| {name} | {each:,.1f} | {_bytes(each * given.tokens)} |")


def _bytes(n: float) -> str:
    return f"{n / 1e12:,.2f} TB" if n >= 1e12 else f"{n / 1e9:,.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(ROOT / "data/model/final"))
    parser.add_argument("--corpus", default=str(ROOT / "data/probe_corpus.jsonl"))
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--documents", type=int, default=144, help="documents of a part")
    parser.add_argument("--shard-tokens", type=int, default=8192)
    parser.add_argument("--check", action="store_true", help="compare each merged trace with that of one process")
    parser.add_argument("--estimate", action="store_true")
    for name, value in vars(Assumptions()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        i, n = map(int, options.part.split("/"))
        print(json.dumps(collect_part(options.model, options.corpus, options.out, (i, n), options.shard_tokens)))
    elif options.estimate:
        given = Assumptions(**{name: getattr(options, name) for name in vars(Assumptions())})
        estimate(given, Shape(**{name: getattr(options, name) for name in vars(Shape())}))
    else:
        weak_scaling(options)


if __name__ == "__main__":
    main()
