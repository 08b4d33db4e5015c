"""Time of the fingerprint of the weights beside loading them.

    python benchmarks/fingerprint.py [--layers 4] [--device cpu] [--rounds 3]

An OLMoE-shaped checkpoint of random bfloat16 weights is made on the spot (about 105 MB a layer). Each round loads it with
transformers alone, which reads files, fuses the experts and places them, and then hashes routers and experts: by one
thread over everything, as earlier versions did, and in blocks by 1, 2 and all threads. Medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
import transformers

from moe_probe.models import find_moe_layers, fingerprint


def save(folder: Path, n_layers: int) -> None:
    """Save a random model: 16 experts of 2,048 x 512 a layer, small outside of them."""
    config = transformers.OlmoeConfig(
        vocab_size=512,
        hidden_size=2048,
        intermediate_size=512,
        num_hidden_layers=n_layers,
        num_attention_heads=16,
        num_experts=16,
        num_experts_per_tok=4,
    )
    torch.manual_seed(0)
    transformers.OlmoeForCausalLM(config).bfloat16().save_pretrained(folder)


def measure(folder: Path, device: str, rounds: int) -> tuple[dict[str, float], float]:
    """Median seconds of each step, and the gigabytes that are hashed."""
    seconds: dict[str, list[float]] = defaultdict(list)
    threads = sorted({1, 2, min(16, os.cpu_count() or 1)})
    n_bytes = 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval().to(device)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds["load"].append(time.perf_counter() - started)
        sites = find_moe_layers(model)
        n_bytes = sum(p.nbytes for site in sites for p in site.block.parameters()) / 1e9
        blocks = [(f"blocks (BLAKE3), threads: {n}", {"threads": n}) for n in threads]
        for name, options in [("one hash (SHA-256, as before)", {"scheme": ""}), *blocks]:
            started = time.perf_counter()
            fingerprint(model, sites, **options)
            seconds[name].append(time.perf_counter() - started)
        del model, sites
    return {name: statistics.median(values) for name, values in seconds.items()}, n_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), args.layers)
        seconds, n_bytes = measure(Path(folder), args.device, args.rounds)
    name = torch.cuda.get_device_name() if args.device != "cpu" else f"{os.cpu_count()} CPU cores"
    print(f"{name}, {n_bytes:.2f} GB of routers and experts\n")
    print("| step | seconds | share of loading | GB/s |\n|---|---|---|---|")
    for step, value in seconds.items():
        print(f"| {step} | {value:.3f} | {value / seconds['load']:.2f} | {n_bytes / value:.2f} |")


if __name__ == "__main__":
    main()
