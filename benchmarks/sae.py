"""Training throughput of SAEs against their floor: the encoder's product and the top-k alone.

    python benchmarks/sae.py [--steps 200] [--width 4096] [--k 16] [--d-in 256] [--batch 2048]

Synthetic activations of a known dictionary (1,024 unit features, power-law frequencies, about 8 active, a mean offset and
noise), the same batches for every variant. Peers (sae-lens, dictionary_learning, sparsify) are not part of this script yet.
"""

from __future__ import annotations

import argparse
import time

import torch

from moe_probe.sae import SaeConfig, TrainOptions, train_saes

FEATURES, ACTIVE = 1024, 8.0


class Synthetic:
    """Activations of a known dictionary."""

    def __init__(self, d_in: int) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(FEATURES, d_in, generator=generator)
        self.truth = rows / rows.norm(dim=1, keepdim=True)
        odds = torch.arange(1, FEATURES + 1).float() ** -0.5
        self.chance = (odds / odds.sum() * ACTIVE).clamp_max(1.0)
        self.mean = torch.randn(d_in, generator=generator)

    def batch(self, n: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        on = torch.rand(n, FEATURES, generator=generator) < self.chance
        size = 0.5 + torch.rand(n, FEATURES, generator=generator)
        noise = 0.02 * torch.randn(n, self.truth.shape[1], generator=generator)
        return (on * size) @ self.truth + self.mean + noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("steps", 200), ("width", 4096), ("k", 16), ("d-in", 256), ("batch", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    o = parser.parse_args()
    data = Synthetic(o.d_in)
    batches = [data.batch(o.batch, seed) for seed in range(o.steps)]
    held_out = data.batch(16_384, 10**6)
    weight, bias = torch.randn(o.width, o.d_in), torch.randn(o.width)
    started = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            torch.addmm(bias, batch, weight.T).topk(o.k, dim=1, sorted=False)
    floor = time.perf_counter() - started
    tokens = o.steps * o.batch
    print(f"{tokens:,} tokens, d_in {o.d_in}, width {o.width:,}, k {o.k}, {torch.get_num_threads()} threads\n")
    print("| variant | tokens/s | held-out FVU | true features found (cosine > 0.9) | L0 |\n|---|---|---|---|---|")
    print(f"| floor: encoder product and top-k alone | {tokens / floor:,.0f} | | | |")
    for architecture in ("topk", "batchtopk", "matryoshka"):
        config = SaeConfig(architecture=architecture, d_in=o.d_in, d_sae=o.width, k=o.k)
        started = time.perf_counter()
        sae = train_saes(batches, [config], options=TrainOptions(steps=o.steps))[0]
        seconds = time.perf_counter() - started
        with torch.no_grad():
            latents = sae.encode(held_out)
            error = (held_out - sae(held_out)).square().sum() / (held_out - held_out.mean(0)).square().sum()
            found = ((data.truth @ sae.W_dec.T).max(1).values > 0.9).float().mean()
            active = float((latents.values > 0).sum() / len(held_out))
        print(f"| {architecture} | {tokens / seconds:,.0f} | {float(error):.3f} | {float(found):.0%} | {active:.1f} |",
              flush=True)


if __name__ == "__main__":
    main()
