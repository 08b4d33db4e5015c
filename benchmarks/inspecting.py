"""What watching one output costs: forward pass bare, with hooks, and with hooks and encoding by an SAE.

    python benchmarks/inspecting.py [--model data/model/final] [--width 4096] [--rounds 31] [--cpu-time]

Texts of 32, 128 and 512 tokens of the probe corpus. Each round runs the three in turn, in alternating order; ratios are
taken within a round, and medians over rounds (two rounds warm up). The SAE reads the router's input of the last layer and
has random weights, whose encoding takes as long as that of trained ones. All three form predictions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "data/model/final"))
    parser.add_argument("--corpus", type=Path, default=ROOT / "data/probe_corpus.jsonl")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of this process's CPU time, where others use the machine too (with OMP_NUM_THREADS=1)",
    )
    options = parser.parse_args()

    import numpy as np
    import torch

    from moe_probe.models import load_model
    from moe_probe.recording.collect import Window
    from moe_probe.sae import SaeConfig, make_sae
    from moe_probe.studies.inspect.overhead import Rounds, measure_overhead

    loaded = load_model(options.model, progress=False)
    layer, d_in = loaded.sites[-1].info.layer, loaded.model.config.get_text_config().hidden_size
    sae = make_sae(
        SaeConfig(architecture="topk", d_in=d_in, d_sae=options.width, k=16, hook="router_input", layer=layer)
    ).eval()
    texts = "\n".join(json.loads(line)["text"] for line in options.corpus.read_text(encoding="utf-8").splitlines()[:20])
    ids = np.asarray(loaded.tokenizer(texts, verbose=False)["input_ids"], dtype=np.int64)
    print(
        f"{loaded.info.dtype} weights, {torch.get_num_threads()} threads, one SAE of width {options.width:,}, "
        f"{options.rounds} rounds{', CPU time' if options.cpu_time else ''}\n"
    )
    print(
        "| tokens | forward, µs a token | with hooks | with hooks and encoding | quartiles | operations, encoder over model |"
    )
    print("|---|---|---|---|---|---|")
    for n in options.tokens:
        cost = measure_overhead(
            loaded,
            Window(ids[:n], slice(0, n)),
            {"sae": sae},
            rounds=Rounds(options.rounds, options.rounds),
            clock=time.process_time if options.cpu_time else time.perf_counter,
        )
        share = "not counted" if cost.forward_flops is None else f"{cost.encode_flops / cost.forward_flops:.0%}"
        low, high = cost.encoding_quartiles
        print(
            f"| {n} | {1e6 * cost.forward / n:,.0f} | {cost.hooks_ratio:.3f} | {cost.encoding_ratio:.3f} | "
            f"{low:.3f} to {high:.3f} | {share} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
