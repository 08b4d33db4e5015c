"""What a GPU does: collecting at the shapes of real models, fingerprints, SAE steps, training from disk, the demo.

    python benchmarks/gpu.py                     (all but profile and demo; about six minutes on one H200)
    python benchmarks/gpu.py --only sae,disk --corpus MINE.jsonl

Models have random weights in the shapes of OLMoE (13.4 B parameters) and Qwen3-30B-A3B (30.5 B), in bfloat16, and the
tokenizer of the shipped model. Without a GPU, everything runs at tiny shapes: that tests this script and measures nothing.
eai-sparsify 1.3.3 takes part if it is installed. ``--load FOLDER`` also writes each model there (27 and 61 GB) and times
loading it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_training import disk_against_memory
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = DEVICE == "cpu"
PARTS = ("olmoe", "qwen", "sae", "disk", "profile", "demo")
SAE_SHAPES = [(64, 512, 8, 256, 4)] if TINY else [(2048, 32768, 64, 4096, 200), (2048, 131072, 64, 8192, 40)]


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call, the device's work included."""
    sync()
    started = time.perf_counter()
    for _ in range(times):
        work()
    sync()
    return (time.perf_counter() - started) / times


def sync() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak() -> str:
    """Peak device memory since the last call, in words."""
    if DEVICE == "cpu":
        return ""
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"{most:.1f} GiB"


def row(*cells: object) -> None:
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def head(*cells: str) -> None:
    print()
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


def build(kind: str) -> Any:
    """A model of random weights, recorded from as if it had been loaded; and the seconds of its fingerprint."""
    from transformers import AutoTokenizer, OlmoeConfig, OlmoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from moe_probe.core.schema import ModelInfo
    from moe_probe.models import LoadedModel, find_moe_layers, fingerprint

    small = {"vocab_size": 4096, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_experts": 8}
    small |= {"num_experts_per_tok": 2, "max_position_embeddings": 512}
    if kind == "olmoe":
        shape = {"vocab_size": 50304, "max_position_embeddings": 4096}
        small |= {"intermediate_size": 32, "num_key_value_heads": 4}
        config, family = OlmoeConfig(**(small if TINY else shape)), OlmoeForCausalLM
    else:
        shape = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768}
        shape |= {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}
        shape |= {"num_experts": 128, "num_experts_per_tok": 8, "max_position_embeddings": 4096}
        small |= {"intermediate_size": 64, "moe_intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 16}
        config, family = Qwen3MoeConfig(**(small if TINY else shape)), Qwen3MoeForCausalLM
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = family(config)
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    model.eval()
    sites = tuple(find_moe_layers(model))
    sync()
    started = time.perf_counter()
    print_of = fingerprint(model, sites)
    taken = time.perf_counter() - started
    n = sum(p.numel() for p in model.parameters())
    info = ModelInfo(id=kind, architecture=type(model).__name__, fingerprint=print_of, dtype="bfloat16", n_parameters=n)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/model/final")
    return LoadedModel(model, tokenizer, info, sites, config.max_position_embeddings), taken


def forward(kind: str, o: argparse.Namespace, work: Path) -> None:
    """Plain forward passes, hooks, collecting, hidden states, the fingerprint."""
    from moe_probe.models import RoutingCapture, forward_inputs, load_model
    from moe_probe.recording import CollectOptions, Corpus

    loaded, fingerprint_seconds = build(kind)
    model = loaded.model
    print(
        f"\n{kind}: {loaded.info.n_parameters / 1e9:.2f} B parameters, fingerprint {fingerprint_seconds:.1f} s", flush=True
    )
    if o.load:
        folder = Path(o.load) / kind
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        taken = seconds(lambda: load_model(folder, device=DEVICE, progress=False))
        print(f"{kind}: loading, fingerprint included, {taken:.1f} s", flush=True)
        shutil.rmtree(folder)
    head("forward passes", "tokens/s", "with hooks, over plain")
    every = torch.randint(5, 4000, (2, 128) if TINY else (16, 2048), device=DEVICE)
    for rows in (1, 2) if TINY else (2, 16):
        ids = every[:rows]
        inputs = forward_inputs(model, ids, torch.ones_like(ids), logits=False)
        with torch.inference_mode():
            seconds(lambda i=inputs: model(**i), 2)
            plain = seconds(lambda i=inputs: model(**i), 4)
            with RoutingCapture(model, loaded.sites) as capture:
                seconds(lambda i=inputs, c=capture: (model(**i), c.take()))
                hooked = seconds(lambda i=inputs, c=capture: (model(**i), c.take()), 4)
        row(f"batches of {ids.numel():,} tokens", f"{ids.numel() / plain:,.0f}", f"{hooked / plain:.3f}")
    hidden = {"keep": ("routing", "hidden"), "hidden_share": 1.0, "hidden_layers": (1,) if TINY else (8,)}
    head("collecting", "tokens/s", "over a plain forward of the same batches", "peak")
    corpus = Corpus(o.corpus, limit=40 if TINY else None)
    for name, options in (("ids and weights", {}), ("with one layer's hidden states", hidden)):
        if options and kind != "olmoe":  # whose trace SAEs are trained from
            continue
        tokens, taken, plain = collecting(loaded, corpus, work / f"{kind}-trace", CollectOptions(**options))
        row(name, f"{tokens / taken:,.0f}", f"{taken / plain:.3f}", peak())


def collecting(loaded: Any, corpus: Any, out: Path, options: Any) -> tuple[int, float, float]:
    """Tokens, seconds of collecting, seconds of plain forward passes over the batches that collecting made."""
    from moe_probe.recording import collect_trace

    batches: list[dict[str, Any]] = []

    def seen(_model: Any, _arguments: Any, words: dict[str, Any]) -> None:
        batches.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in words.items()})

    def collect() -> Any:
        return collect_trace(loaded, corpus, out, options=options, mode="force", progress=False)

    collect()  # warms up
    hook = loaded.model.register_forward_pre_hook(seen, with_kwargs=True)
    kept: list[Any] = []
    taken = seconds(lambda: kept.append(collect()))
    hook.remove()
    n_tokens, own = kept[0].n_tokens, list[dict[str, Any]]()
    while sum(int(batch["attention_mask"].sum()) for batch in own) < n_tokens:  # not those that tried which size fits
        own.append(batches.pop())
    with torch.inference_mode():
        plain = seconds(lambda: [loaded.model(**batch) and None for batch in own])
    return n_tokens, taken, plain


class Dictionary:
    """Batches of sums of 32 of 8,192 directions, a mean and noise, on the device."""

    def __init__(self, d: int, batch: int) -> None:
        generator = torch.Generator(device=DEVICE).manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(8192, d, device=DEVICE, generator=generator), dim=1)
        self.mean = torch.randn(d, device=DEVICE, generator=generator)
        self.pool = []
        for _ in range(16):
            which = torch.randint(0, 8192, (batch, 32), device=DEVICE, generator=generator)
            size = torch.rand(batch, 32, device=DEVICE, generator=generator) + 0.5
            sums = torch.nn.functional.embedding_bag(which, rows, per_sample_weights=size, mode="sum")
            noise = 0.02 * torch.randn(batch, d, device=DEVICE, generator=generator)
            self.pool.append(sums + self.mean + noise)
        self.held_out = self.pool.pop()

    def stream(self, n: int, warm: int = 0) -> Iterator[Tensor]:
        """Batches; the time from the first `warm` of them to the end is in `taken` when all have been used."""
        for i in range(n):
            if i == warm:
                sync()
                started = time.perf_counter()
            yield self.pool[i % len(self.pool)]
        sync()
        self.taken = time.perf_counter() - started

    def unexplained(self, reconstruct: Callable[[Tensor], Tensor]) -> float:
        held = self.held_out
        with torch.no_grad():
            error = sum((part - reconstruct(part).float()).square().sum() for part in held.split(1024))
        return float(error / (held - held.mean(0)).square().sum())


def floor_of(x: Tensor, width: int, k: int) -> float:
    """Seconds of the encoder's product in bfloat16 and torch's top-k in float32."""
    weight = torch.randn(width, x.shape[1], device=DEVICE, dtype=torch.bfloat16)

    def work() -> None:
        (x.bfloat16() @ weight.T).float().topk(k, dim=1, sorted=False)

    seconds(work)
    return seconds(work, 2 if TINY else 10)


def steps(d: int, width: int, k: int, batch: int, n: int) -> None:
    """SAE steps: the time of n of them behind 30 others."""
    from moe_probe.sae import SaeConfig, TrainOptions, train_saes

    data = Dictionary(d, batch)
    floor = floor_of(data.pool[0], width, k)
    peak()
    head(f"d {d:,}, width {width:,}, k {k}, batch {batch:,}", "tokens/s", "over the floor", "held-out FVU", "peak")
    row("floor: encoder in bfloat16, torch's top-k in float32", f"{batch / floor:,.0f}", "1.00", "", "")
    warm = min(30, n)

    def report(name: str, run: Callable[[int, int], Callable[[Tensor], Tensor]]) -> None:
        run(3, 0)  # compiles
        peak()
        trained = run(warm + n, warm)
        each, most = data.taken / n, peak()
        row(name, f"{batch / each:,.0f}", f"{each / floor:.2f}", f"{data.unexplained(trained):.3f}", most)

    def ours(architecture: str, count: int, begin: int) -> Callable[[Tensor], Tensor]:
        config = SaeConfig(architecture=architecture, d_in=d, d_sae=width, k=k)
        options = TrainOptions(steps=count, learning_rate=1e-3, device=DEVICE, precision="bfloat16")
        return train_saes(data.stream(count, begin), [config], options=options)[0].to(DEVICE)

    for architecture in ("topk", "batchtopk"):
        report(f"moe_probe {architecture}", partial(ours, architecture))
    with suppress(ImportError):
        if TINY:
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        from sparsify import SparseCoder, SparseCoderConfig

        def theirs(count: int, begin: int) -> Callable[[Tensor], Tensor]:
            torch.manual_seed(0)
            sae = SparseCoder(d, SparseCoderConfig(num_latents=width, k=k), device=DEVICE)
            with torch.no_grad():
                sae.b_dec.copy_(data.mean)
            adam = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True)
            for x in data.stream(count, begin):
                adam.zero_grad()
                sae(x).fvu.backward()
                sae.remove_gradient_parallel_to_decoder_directions()
                torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
                adam.step()
                sae.set_decoder_norm_to_unit_norm()
            return lambda x: sae(x).sae_out

        report("sparsify 1.3.3 topk", theirs)


def profile(d: int, width: int, k: int, batch: int) -> None:
    """Time of the device in a topk step before any latent is dead, with our sums of rows and with torch's."""
    from torch.profiler import ProfilerActivity

    from moe_probe.sae import SaeConfig, TrainOptions
    from moe_probe.sae.architectures import bags, ops
    from moe_probe.sae.training.steps import Training

    data, ours = Dictionary(d, batch), ops.fast
    options = TrainOptions(steps=1000, learning_rate=1e-3, device=DEVICE, precision="bfloat16")
    for name, fast in (("our sums of rows", ours), ("torch's sums of rows", lambda _rows: False)):
        ops.fast = bags.fast = fast
        config = SaeConfig(d_in=d, d_sae=width, k=k)
        training = Training.start(config, data.pool[0], options, steps=1000, tokens=1000 * batch)
        for x in data.stream(10):
            training.step(x)
        with torch.profiler.profile(
            activities=[ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU]
        ) as seen:
            for x in data.stream(5):
                training.step(x)
        spent: dict[str, float] = {}
        for event in seen.events() or []:
            taken = event.device_time if DEVICE == "cuda" else event.self_cpu_time_total
            spent[event.name] = spent.get(event.name, 0.0) + taken / 5000
        head(f"width {width:,}, {name}", "ms a step")
        for kernel in sorted(spent, key=spent.__getitem__, reverse=True)[:12]:
            row(kernel[:90].replace("|", "/"), f"{spent[kernel]:.2f}")
        row("**all**", f"**{sum(spent.values()):.2f}**")
    ops.fast = bags.fast = ours


def disk(work: Path) -> None:
    """Training from a trace against training from memory."""
    from moe_probe.recording import Trace

    trace = Trace.open(work / "olmoe-trace")
    head("training", "batch", "from memory, tokens/s", "from disk, tokens/s", "disk over memory")
    width, k, layer = (64, 4, 1) if TINY else (16384, 32, 8)
    for batch in (256, 512) if TINY else (2048, 8192):
        memory, stored = disk_against_memory(trace, layer=layer, width=width, k=k, batch=batch, device=DEVICE, epochs=4)
        row(f"width {width:,}", f"{batch:,}", f"{memory:,.0f}", f"{stored:,.0f}", f"{stored / memory:.2f}")


def demo(work: Path) -> None:
    words = [sys.executable, "-m", "moe_probe", "demo", "--out", str(work / "demo")]
    taken = seconds(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))
    print(f"\ndemo: {taken:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="olmoe,qwen,sae,disk", help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--corpus", default=str(ROOT / "data/probe_corpus.jsonl"), help="about 400,000 tokens are enough")
    parser.add_argument("--load", default="", help="folder with room for the models: times loading them as well")
    o = parser.parse_args()
    parts = o.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}")
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: tiny shapes, which measure nothing"
    print(f"{card}; torch {torch.__version__}")
    work = Path(tempfile.mkdtemp())
    try:
        if {"olmoe", "disk"} & set(parts):
            forward("olmoe", o, work)
        if "disk" in parts:
            disk(work)
        if "qwen" in parts:
            forward("qwen", o, work)
        if "sae" in parts:
            for shape in SAE_SHAPES:
                steps(*shape)
        if "profile" in parts:
            for shape in SAE_SHAPES:
                profile(*shape[:4])
        if "demo" in parts:
            demo(work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
