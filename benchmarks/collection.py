"""Time and memory of collecting, against a plain forward pass over the same batches.

    python benchmarks/collection.py [--model data/model/final] [--corpus data/probe_corpus.jsonl] [--rounds 9]

Overhead: each round runs every variant over all batches, in alternating order; ratios are taken within a
round. "plain" is the model as called by hand; "no_logits" leaves away the predictions, which routing does
not need; "hooks" is the plain forward with recording on; "collect" is everything collecting does
(tokenising, windows, forward without predictions, hooks, checksums, files on disk). Memory: peak resident set of a process
that collects the corpus once and eight times over.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def batches(loaded, corpus) -> list:
    """The batches that collecting makes of the corpus, as inputs of the model."""
    import torch

    from moe_probe.models import forward_inputs
    from moe_probe.recording.collect import Encoder

    encoder = Encoder(loaded.tokenizer, max_length=loaded.max_length, overlap=loaded.max_length // 8)
    out, shard, n = [], [], 0

    def flush() -> None:
        windows = sorted((w.ids for d in shard for w in d.windows), key=lambda ids: -len(ids))
        batch: list = []
        for ids in [*windows, None]:
            if batch and (ids is None or len(batch[0]) * (len(batch) + 1) > 4096):
                length = len(batch[0])
                rows = torch.tensor([[*i, *[1] * (length - len(i))] for i in batch])
                mask = torch.tensor([[1] * len(i) + [0] * (length - len(i)) for i in batch])
                out.append(forward_inputs(loaded.model, rows, mask))
                batch = []
            if ids is not None:
                batch.append(ids)

    for document in corpus:
        shard.append(encoder(document))
        n += len(shard[-1].ids)
        if n >= 65536:
            flush()
            shard, n = [], 0
    flush()
    return out


def overhead(model: str, corpus_path: str, rounds: int) -> dict[str, float]:
    """Medians over rounds, and the bytes that a routed slot takes on disk."""
    import torch

    from moe_probe.models import RoutingCapture, load_model
    from moe_probe.recording.collect import collect_trace
    from moe_probe.recording.corpus import Corpus

    loaded, corpus = load_model(model, progress=False), Corpus(corpus_path)
    inputs = batches(loaded, corpus)
    folder = Path(tempfile.mkdtemp())

    def plain() -> None:
        with torch.inference_mode():
            for batch in inputs:
                loaded.model(**batch)

    def no_logits() -> None:
        with torch.inference_mode():
            for batch in inputs:
                loaded.model(**batch, logits_to_keep=1)

    def hooks() -> None:
        with torch.inference_mode(), RoutingCapture(loaded.model, loaded.sites) as capture:
            for batch in inputs:
                loaded.model(**batch)
                capture.take()

    def collect() -> None:
        collect_trace(loaded, corpus, folder / "trace", mode="force", progress=False)

    def timed(work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    works = {"plain": plain, "no_logits": no_logits, "hooks": hooks, "collect": collect}
    for work in works.values():
        work()  # warm up
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        order = list(works) if number % 2 == 0 else list(works)[::-1]
        for name in order:
            times[name].append(timed(works[name]))
    from moe_probe.recording.trace import Trace

    def ratio(work: str, base: str) -> float:
        return statistics.median(w / b for w, b in zip(times[work], times[base], strict=True))

    trace = Trace.open(folder / "trace")
    slots = trace.n_tokens * len(trace.layers) * max(layer.top_k for layer in trace.layers)
    routing = sum(f.size for s in trace.manifest.shards for f in s.files)
    table = next(f.size for f in trace.manifest.files if f.path == "tokens.parquet")
    other = sum(f.size for f in trace.manifest.files) - table
    shutil.rmtree(folder)
    return {
        "tokens": trace.n_tokens,
        "plain_s": statistics.median(times["plain"]),
        "plain_tokens_per_s": trace.n_tokens / statistics.median(times["plain"]),
        "hooks_over_plain": ratio("hooks", "plain"),
        "collect_over_plain": ratio("collect", "plain"),
        "no_logits_over_plain": ratio("no_logits", "plain"),
        "collect_over_no_logits": ratio("collect", "no_logits"),
        "bytes_per_slot": routing / slots,
        "token_table_bytes_per_token": table / trace.n_tokens,
        "documents_and_usage_bytes_per_token": other / trace.n_tokens,
    }


def collect_times(model: str, corpus_path: str, times: int) -> None:
    """Collect the corpus `times` over under new ids and print the peak resident set in MiB."""
    from moe_probe.models import load_model
    from moe_probe.recording.collect import collect_trace
    from moe_probe.recording.corpus import Corpus

    folder = Path(tempfile.mkdtemp())
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(times):
            for line in Path(corpus_path).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                file.write(json.dumps(row | {"id": f"{number}/{row['id']}"}) + "\n")
    trace = collect_trace(
        load_model(model, progress=False), Corpus(folder / "corpus.jsonl"), folder / "trace", progress=False
    )
    shutil.rmtree(folder)
    print(json.dumps({"tokens": trace.n_tokens, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(ROOT / "data/model/final"))
    parser.add_argument("--corpus", default=str(ROOT / "data/probe_corpus.jsonl"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--times", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.times:
        collect_times(options.model, options.corpus, options.times)
        return
    print("| measure | value |\n|---|---|")
    for name, value in overhead(options.model, options.corpus, options.rounds).items():
        print(f"| {name} | {value:,.3f} |" if isinstance(value, float) else f"| {name} | {value:,} |", flush=True)
    for times in (1, 8):
        words = [sys.executable, __file__, "--model", options.model, "--corpus", options.corpus, "--times", str(times)]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        print(f"| peak memory, {found['tokens']:,} tokens | {found['peak_mib']:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
