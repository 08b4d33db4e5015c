"""Time and memory of collecting, against a plain forward pass over the same batches.

    python benchmarks/collection.py [--model data/model/final | --tiny] [--corpus FILE] [--rounds 9] [--cpu-time]
    python benchmarks/collection.py --slow 0.8      (tokenizing and writing made slow: does the model still set the pace?)

Overhead: each round runs every variant over all batches, in alternating order; ratios are taken within a
round. "plain" is the model as called by hand; "no_logits" skips the output head, which routing does
not need; "hooks" is the latter with recording on; "in_turn" is everything collecting does
(tokenising, windows, forward without predictions, hooks, checksums, files on disk) in one thread, "collect" the same
with its stages side by side. --tiny takes a model of two layers and width 64 with random weights, whose forward pass costs
little. --cpu-time counts processor seconds of all threads instead of time that passes.

--slow SHARE: tokenizing a shard and writing one each sleep for SHARE of the time that the shard's forward passes take.
Sleeping uses no processor, so what is measured is whether stages wait for each other.

Memory: peak resident set of a process that collects the corpus once and eight times over.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "data/model/final"


def load(model: str) -> Any:
    """The model of a folder, or a tiny one with the shipped tokenizer."""
    from moe_probe.models import LoadedModel, find_moe_layers, fingerprint, load_model

    if model != "tiny":
        return load_model(model, dtype="float32", progress=False)  # fast also without bfloat16 units
    import torch
    import transformers

    from moe_probe.core.schema import ModelInfo

    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        eos_token_id=0,
    )
    made = transformers.OlmoeForCausalLM(config).eval()
    sites = tuple(find_moe_layers(made))
    info = ModelInfo(id="tiny", architecture="OlmoeForCausalLM", fingerprint=fingerprint(made, sites), dtype="float32")
    return LoadedModel(made, tokenizer, info, sites, 512)


def batches(loaded: Any, corpus: Any, options: Any) -> list[dict[str, Any]]:
    """The batches that collecting makes of the corpus, as inputs of the model."""
    from moe_probe.models import forward_inputs
    from moe_probe.recording.collect.batches import Batching, pad_id
    from moe_probe.recording.collect.blocks import block_bytes, cut_blocks, documents_of
    from moe_probe.recording.collect.windows import make_encoder

    summary = corpus.summarize()
    encoder = make_encoder(loaded.tokenizer, loaded.max_length, options)
    blocks = cut_blocks(summary.sizes, block_bytes(encoder, summary.opening, options.shard_tokens))
    batching = Batching(4096, pad_id(loaded.tokenizer))
    return [
        forward_inputs(loaded.model, batch.ids, batch.mask)
        for _, documents in documents_of(blocks, corpus)
        for batch in batching.batches(encoder.encode(documents), None)
    ]


class Variants:
    """What is compared, over the same batches."""

    def __init__(self, model: str, corpus: str, shard_tokens: int) -> None:
        from moe_probe.recording.corpus import Corpus
        from moe_probe.recording.settings import CollectOptions

        self.loaded, self.corpus = load(model), Corpus(corpus)
        self.options = CollectOptions(shard_tokens=shard_tokens)
        self.inputs = batches(self.loaded, self.corpus, self.options)
        self.folder = Path(tempfile.mkdtemp())

    def forward(self, **more: Any) -> None:
        import torch

        with torch.inference_mode():
            for batch in self.inputs:
                self.loaded.model(**batch, **more)

    def plain(self) -> None:
        self.forward()

    def no_logits(self) -> None:
        self.forward(logits_to_keep=1)

    def hooks(self) -> None:
        import torch

        from moe_probe.models import RoutingCapture

        with torch.inference_mode(), RoutingCapture(self.loaded.model, self.loaded.sites) as capture:
            for batch in self.inputs:
                self.loaded.model(**batch, logits_to_keep=1)
                capture.take()

    def collect(self, *, side_by_side: bool = True) -> None:
        from moe_probe.recording.collect import collect_trace, pipeline

        pipeline.DEPTHS = pipeline.Depths() if side_by_side else pipeline.IN_TURN
        collect_trace(self.loaded, self.corpus, self.folder / "trace", options=self.options, mode="force", progress=False)

    def in_turn(self) -> None:
        self.collect(side_by_side=False)

    def rounds(self, names: list[str], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
        """Seconds of each variant in each round, after one that warms up."""
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(-1, rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                started = clock()
                getattr(self, name)()
                if number >= 0:
                    times[name].append(clock() - started)
        return times


def ratio(times: dict[str, list[float]], work: str, base: str) -> float:
    return statistics.median(w / b for w, b in zip(times[work], times[base], strict=True))


def overhead(variants: Variants, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians over rounds, and the bytes that a routed slot takes on disk."""
    from moe_probe.recording.trace import Trace

    times = variants.rounds(["plain", "no_logits", "hooks", "in_turn", "collect"], rounds, clock)
    trace = Trace.open(variants.folder / "trace")
    slots = trace.n_tokens * len(trace.layers) * max(layer.top_k for layer in trace.layers)
    routing = sum(f.size for s in trace.manifest.shards for f in s.files)
    table = next(f.size for f in trace.manifest.files if f.path == "tokens.parquet")
    other = sum(f.size for f in trace.manifest.files) - table
    return {
        "tokens": trace.n_tokens,
        "no_logits_s": statistics.median(times["no_logits"]),
        "no_logits_tokens_per_s": trace.n_tokens / statistics.median(times["no_logits"]),
        "hooks_over_no_logits": ratio(times, "hooks", "no_logits"),
        "in_turn_over_no_logits": ratio(times, "in_turn", "no_logits"),
        "collect_over_no_logits": ratio(times, "collect", "no_logits"),
        "collect_over_plain": ratio(times, "collect", "plain"),
        "bytes_per_slot": routing / slots,
        "token_table_bytes_per_token": table / trace.n_tokens,
        "documents_and_usage_bytes_per_token": other / trace.n_tokens,
    }


@contextmanager
def slowed(seconds: float) -> Iterator[None]:
    """Have tokenizing and writing a shard sleep first."""
    from moe_probe.recording.collect import Encoder
    from moe_probe.recording.trace import TraceWriter

    plain = {(owner, name): getattr(owner, name) for owner, name in ((Encoder, "encode"), (TraceWriter, "append"))}

    def slow(work: Callable[..., Any]) -> Callable[..., Any]:
        def later(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return work(*args, **kwargs)

        return later

    for (owner, name), work in plain.items():
        setattr(owner, name, slow(work))
    try:
        yield
    finally:
        for (owner, name), work in plain.items():
            setattr(owner, name, work)


def pace(variants: Variants, rounds: int, share: float) -> dict[str, float]:
    """How the model's pace compares with collecting, where tokenizing and writing each take a share of the model's time."""
    from moe_probe.recording.trace import Trace

    times = variants.rounds(["no_logits", "collect"], 1, time.perf_counter)
    n_shards = len(Trace.open(variants.folder / "trace").manifest.shards)
    seconds = share * times["no_logits"][0] / n_shards
    with slowed(seconds):
        times = variants.rounds(["no_logits", "in_turn", "collect"], rounds, time.perf_counter)
    forward = statistics.median(times["no_logits"])
    return {
        "shards": n_shards,
        "forward_s": forward,
        "tokenizing_sleeps_s": seconds * n_shards,
        "writing_sleeps_s": seconds * n_shards,
        "in_turn_over_forward": ratio(times, "in_turn", "no_logits"),
        "collect_over_forward": ratio(times, "collect", "no_logits"),
        # what cannot overlap: the first shard must be tokenized before the model begins, the last written when it has ended
        "of_which_first_and_last_shard": 2 * seconds / forward,
    }


def collect_times(model: str, corpus_path: str, times: int) -> None:
    """Collect the corpus `times` over under new ids and print the peak resident set in MiB."""
    from moe_probe.recording.collect import collect_trace
    from moe_probe.recording.corpus import Corpus

    folder = Path(tempfile.mkdtemp())
    repeat(corpus_path, folder / "corpus.jsonl", times)
    trace = collect_trace(load(model), Corpus(folder / "corpus.jsonl"), folder / "trace", progress=False)
    shutil.rmtree(folder)
    print(json.dumps({"tokens": trace.n_tokens, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def repeat(corpus: str, out: Path, times: int) -> Path:
    """Write a corpus several times over, under new ids."""
    with out.open("w", encoding="utf-8") as file:
        for number in range(times):
            for line in Path(corpus).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                file.write(json.dumps(row | {"id": f"{number}/{row['id']}"}) + "\n")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SHIPPED))
    parser.add_argument("--tiny", action="store_const", const="tiny", dest="model")
    parser.add_argument("--corpus", default=str(ROOT / "data/probe_corpus.jsonl"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=1, help="the corpus so many times over")
    parser.add_argument("--shard-tokens", type=int, default=65536)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--slow", type=float, help="share of the model's time that tokenizing and writing each sleep")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--times", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.times:
        collect_times(options.model, options.corpus, options.times)
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus = repeat(options.corpus, Path(folder) / "corpus.jsonl", options.repeat)
        variants = Variants(options.model, str(corpus), options.shard_tokens)
        clock = time.process_time if options.cpu_time else time.perf_counter
        measured = (
            pace(variants, options.rounds, options.slow) if options.slow else overhead(variants, options.rounds, clock)
        )
        shutil.rmtree(variants.folder)
    print("| measure | value |\n|---|---|")
    for name, value in measured.items():
        print(f"| {name} | {value:,.3f} |" if isinstance(value, float) else f"| {name} | {value:,} |", flush=True)
    for times in () if options.slow or options.no_memory else (1, 8):
        words = [sys.executable, __file__, "--model", options.model, "--corpus", options.corpus, "--times", str(times)]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        print(f"| peak memory, {found['tokens']:,} tokens | {found['peak_mib']:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
