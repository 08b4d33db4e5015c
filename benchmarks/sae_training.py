"""Training of SAEs: tokens a second against the floor and against peers, on the same activations in the same run.

    python benchmarks/sae_training.py [--steps 200] [--width 4096] [--k 16] [--d-in 256] [--batch 2048] [--repeats 2]

The floor is the encoder's product and the top-k alone. Activations are those of a known dictionary (1,024 unit features,
power-law frequencies, about 8 active, a mean offset and noise), so that true features can be counted. Every contestant gets
the same batches, learning rate 3e-3 with a warm-up of a twentieth and a decay over the last fifth of the steps; rounds take
turns, so that a busy machine is busy for all. Peers take part as far as they are installed, in an environment of their own:

    pip install sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3

sparsify's own trainer needs a language model: its SparseCoder is trained by a plain loop with fused Adam. sae-lens starts
`b_dec` at 0, which costs it most of a short run; it gets the activations with their mean taken away as well.

    python benchmarks/sae_training.py --from-disk

compares training from a trace on disk with training from memory, at widths at which steps are short.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moe_probe.sae import ActivationReader, SaeConfig, TrainOptions, train_on, train_saes
from moe_probe.testing import PlantedFeature, planted_activations

if TYPE_CHECKING:
    from moe_probe.recording import Trace

FEATURES, ACTIVE, RATE = 1024, 8.0, 3e-3


class Outcome(NamedTuple):
    """Reconstruction of held-out activations, decoder rows, active latents a token."""

    found: Tensor
    rows: Tensor
    l0: float


class Synthetic:
    """Activations of a known dictionary."""

    def __init__(self, d_in: int) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(FEATURES, d_in, generator=generator)
        self.truth = rows / rows.norm(dim=1, keepdim=True)
        odds = torch.arange(1, FEATURES + 1).float() ** -0.5
        self.chance = (odds / odds.sum() * ACTIVE).clamp_max(1.0)
        self.mean = torch.randn(d_in, generator=generator)

    def batch(self, n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        on = torch.rand(n, FEATURES, generator=generator) < self.chance
        size = 0.5 + torch.rand(n, FEATURES, generator=generator)
        noise = 0.02 * torch.randn(n, self.truth.shape[1], generator=generator)
        return (on * size) @ self.truth + self.mean + noise


def ours(architecture: str, batches: list[Tensor], o: argparse.Namespace) -> Callable[[Tensor], Outcome]:
    """moe_probe."""
    config = SaeConfig(architecture=architecture, d_in=o.d_in, d_sae=o.width, k=o.k)
    sae = train_saes(batches, [config], options=TrainOptions(steps=len(batches), learning_rate=RATE))[0]

    def outcome(x: Tensor) -> Outcome:
        latents = sae.encode(x)
        return Outcome(sae(x), sae.W_dec, float((latents.values > 0).sum() / len(x)))

    return outcome


def sae_lens(batches: list[Tensor], o: argparse.Namespace, *, centred: bool) -> Callable[[Tensor], Outcome]:
    """sae-lens, with its own trainer."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    mean = torch.cat(batches[:4]).mean(0) if centred else torch.zeros(o.d_in)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=o.d_in, d_sae=o.width, k=o.k))
    steps = len(batches)
    config = SAETrainerConfig(
        total_training_samples=steps * o.batch,
        train_batch_size_samples=o.batch,
        lr=RATE,
        lr_end=RATE / 10,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        dead_feature_window=50,
        n_batches_for_norm_estimate=1,
    )

    def stream() -> Iterator[Tensor]:
        yield from (b - mean for b in batches)
        yield batches[-1] - mean

    SAETrainer(config, sae, stream()).fit()
    sae.eval()

    def outcome(x: Tensor) -> Outcome:
        latents = sae.encode(x - mean)
        latents = latents.to_dense() if latents.is_sparse else latents
        return Outcome(sae.decode(latents) + mean, sae.W_dec, float((latents > 0).sum() / len(x)))

    return outcome


def dictionary_learning(batches: list[Tensor], o: argparse.Namespace) -> Callable[[Tensor], Outcome]:
    """dictionary_learning, with its own trainer."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps = len(batches)
    trainer = TopKTrainer(
        steps=steps,
        activation_dim=o.d_in,
        dict_size=o.width,
        k=o.k,
        layer=0,
        lm_name="none",
        lr=RATE,
        warmup_steps=steps // 20,
        decay_start=steps - steps // 5,
        threshold_start_step=steps + 1,
        seed=0,
        device="cpu",
    )
    for step, batch in enumerate(batches):
        trainer.update(step, batch)
    ae = trainer.ae

    def outcome(x: Tensor) -> Outcome:
        latents = ae.encode(x)
        return Outcome(ae.decode(latents), ae.decoder.weight.T, float((latents > 0).sum() / len(x)))

    return outcome


def sparsify(batches: list[Tensor], o: argparse.Namespace) -> Callable[[Tensor], Outcome]:
    """sparsify's SparseCoder in a plain loop."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    sae = SparseCoder(o.d_in, SparseCoderConfig(num_latents=o.width, k=o.k))
    with torch.no_grad():
        sae.b_dec.copy_(torch.cat(batches[:4]).mean(0))
    adam = torch.optim.Adam(sae.parameters(), lr=RATE, fused=True)
    steps = len(batches)
    for step, batch in enumerate(batches):
        for group in adam.param_groups:
            group["lr"] = RATE * min((step + 1) / (steps // 20), 1.0, (steps - step) / (steps // 5))
        adam.zero_grad()
        sae(batch).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        sae.set_decoder_norm_to_unit_norm()

    def outcome(x: Tensor) -> Outcome:
        out = sae(x)
        return Outcome(out.sae_out, sae.W_dec, float((out.latent_acts > 0).sum() / len(x)))

    return outcome


def floor(batches: list[Tensor], o: argparse.Namespace) -> float:
    """Seconds of the encoder's product and the top-k alone."""
    weight, bias = torch.randn(o.width, o.d_in), torch.randn(o.width)
    started = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            torch.addmm(bias, batch, weight.T).topk(o.k, dim=1, sorted=False)
    return time.perf_counter() - started


def contestants(o: argparse.Namespace) -> dict[str, Callable[[list[Tensor]], Callable[[Tensor], Outcome]]]:
    """Everything that is installed, by name."""
    found = {f"moe_probe {a}": lambda b, a=a: ours(a, b, o) for a in ("topk", "batchtopk", "matryoshka")}
    with suppress(ImportError):
        import sparsify as _sparsify  # noqa: F401

        found["sparsify topk"] = lambda b: sparsify(b, o)
    with suppress(ImportError):
        import dictionary_learning as _dictionary_learning  # noqa: F401

        found["dictionary_learning topk"] = lambda b: dictionary_learning(b, o)
    with suppress(ImportError):
        import sae_lens as _sae_lens  # noqa: F401

        found["sae-lens topk, centred data"] = lambda b: sae_lens(b, o, centred=True)
        found["sae-lens topk"] = lambda b: sae_lens(b, o, centred=False)
    return {name: train for name, train in found.items() if not o.only or name in o.only.split(",")}


def experts_in_one_pass(o: argparse.Namespace, batches: list[Tensor], n: int = 16) -> None:
    """Many small SAEs (one per expert) over one stream, against one after the other."""
    configs = [SaeConfig(d_in=o.d_in, d_sae=512, k=o.k, seed=i) for i in range(n)]
    options = TrainOptions(steps=len(batches))
    started = time.perf_counter()
    train_saes(batches, configs, options=options)
    together = time.perf_counter() - started
    started = time.perf_counter()
    for config in configs:
        train_saes(batches, [config], options=options)
    apart = time.perf_counter() - started
    tokens = n * len(batches) * o.batch
    print(
        f"\n{n} SAEs of width 512: {tokens / together:,.0f} SAE-tokens/s in one pass, {tokens / apart:,.0f} one after the "
        "other (activations in memory; from disk they are read once instead of 16 times)"
    )


def disk_against_memory(
    trace: Trace, *, layer: int, width: int, k: int, batch: int, device: str, epochs: int, rounds: int = 1
) -> tuple[float, float]:
    """Tokens/s from batches in memory (on the device, converted) and from a trace; medians of rounds that take turns.

    Times are those of twice the epochs less those of the epochs: reading a sample and the first pool is done once, however
    long the training. A third of the trace is shuffled at a time, so every epoch reads the files again.
    """
    whole = ActivationReader(trace, layer=layer, batch_tokens=batch)
    pool_bytes = 2 * whole.n_tokens * whole.d_in // 3
    config = SaeConfig(d_in=whole.d_in, d_sae=width, k=k)
    memory = [b.values.float().to(device) for b in whole.batches()]
    train_saes(memory[:2] * 3, [config], options=TrainOptions(steps=6, device=device))  # compiles and warms up

    def seconds(name: str, n: int) -> float:
        options = TrainOptions(epochs=n, steps=n * len(memory), batch_tokens=batch, device=device)
        started = time.perf_counter()
        if name == "memory":
            train_saes(memory * n, [config], options=options)
        else:
            reader = ActivationReader(trace, layer=layer, batch_tokens=batch, pool_bytes=pool_bytes)
            train_on(reader, [config], options=options)
        return time.perf_counter() - started

    taken: dict[str, list[float]] = {"memory": [], "disk": []}
    for number in range(rounds):
        for name in sorted(taken, reverse=bool(number % 2)):
            taken[name].append(seconds(name, 2 * epochs) - seconds(name, epochs))
    tokens = epochs * whole.n_tokens
    memory_seconds, disk_seconds = (statistics.median(taken[name]) for name in ("memory", "disk"))
    return tokens / memory_seconds, tokens / disk_seconds


def from_disk(rounds: int) -> None:
    """Training from disk against training from memory, on the CPU."""
    print(f"{torch.get_num_threads()} threads, median of {rounds} rounds\n")
    print(
        "| d_in | width | batch | from memory, tokens/s | from disk, tokens/s | disk over memory |\n|---|---|---|---|---|---|"
    )
    for d_in in (256, 2048):
        with tempfile.TemporaryDirectory() as folder:
            shape = {"topics": 4, "documents_per_topic": 20, "tokens": 500, "num_experts": 8}
            features = tuple(PlantedFeature("noise") for _ in range(32))
            trace = planted_activations(Path(folder) / "trace", features=features, d_in=d_in, **shape).trace
            for width in (256, 2048):
                for batch in (2048, 8192):
                    setting = {"width": width, "k": 16, "batch": batch, "device": "cpu", "epochs": 3}
                    memory, stored = disk_against_memory(trace, layer=0, rounds=rounds, **setting)
                    print(
                        f"| {d_in:,} | {width:,} | {batch:,} | {memory:,.0f} | {stored:,.0f} | {stored / memory:.2f} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 200), ("width", 4096), ("k", 16), ("d-in", 256), ("batch", 2048), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default="", help="contestants by name, separated by commas (moe_probe topk is needed)")
    parser.add_argument("--from-disk", action="store_true", help="compare training from disk with training from memory")
    o = parser.parse_args()
    if o.from_disk:
        from_disk(o.repeats)
        return
    data = Synthetic(o.d_in)
    batches = [data.batch(o.batch, seed) for seed in range(o.steps)]
    held_out = data.batch(16_384, 10**6)
    tokens = o.steps * o.batch
    seconds: dict[str, list[tuple[float, float]]] = {}
    outcomes: dict[str, Outcome] = {}
    floors = []
    for _ in range(o.repeats):
        floors.append(floor(batches, o))
        for name, train in contestants(o).items():
            started, cpu = time.perf_counter(), time.process_time()
            trained = train(batches)
            seconds.setdefault(name, []).append((time.perf_counter() - started, time.process_time() - cpu))
            if name not in outcomes:
                with torch.no_grad():
                    outcomes[name] = trained(held_out)
    print(
        f"{tokens:,} tokens, d_in {o.d_in}, width {o.width:,}, k {o.k}, {torch.get_num_threads()} threads, median of "
        f"{o.repeats} rounds\n"
    )
    print(
        "| trainer | tokens/s | tokens/CPU-second | times slower than moe_probe topk | held-out FVU | true features found "
        "(cosine > 0.9) | L0 |\n|---|---|---|---|---|---|---|"
    )
    print(f"| floor: encoder's product and top-k | {tokens / statistics.median(floors):,.0f} | | | | | |")
    mine = statistics.median(s for s, _ in seconds["moe_probe topk"])
    spread = (held_out - held_out.mean(0)).square().sum()
    for name, times in seconds.items():
        wall, cpu = (statistics.median(t[i] for t in times) for i in (0, 1))
        found, rows, l0 = outcomes[name]
        unit = torch.nn.functional.normalize(rows, dim=1)
        share = float(((data.truth @ unit.T).max(1).values > 0.9).float().mean())
        print(
            f"| {name} | {tokens / wall:,.0f} | {tokens / cpu:,.0f} | {wall / mine:.2f} | "
            f"{float((held_out - found).square().sum() / spread):.3f} | {share:.0%} | {l0:.1f} |",
            flush=True,
        )
    if not o.only:
        experts_in_one_pass(o, batches[: max(10, o.steps // 8)])


if __name__ == "__main__":
    main()
