"""Growth of `moe-probe analyze` with tokens and with documents: peak memory and CPU seconds. Ends with 1 above the limits.

    python benchmarks/memory_growth.py --dir FOLDER [--millions 1 2 4] [--thousands 10 20 40] [--permutations 99]

Two rows of traces, made in --dir and kept there. Tokens: 16 layers, 64 experts, top-8, ids and weights, 1,000 tokens a document
(as `benchmarks/scale.py` draws them). Documents: counts alone, of --layers layers and --experts experts. Every trace is analysed
in a process of its own. Memory is the resident set, as the kernel counts its peak within each analysis, and that of child
processes. A line is fitted to the peaks of a row (least squares); its slope must not exceed

- --token-limit MB per million tokens. Samples of tokens end at 10 million (`beyond_vocabulary`) and 8 million passages
  (`near_duplicates`): so 100 MB per million bounds what they take at 1 GB, and beyond, memory grows with documents alone;
- --document-limit bytes per document and expert of a layer. Counts take 2 (1 where documents have less than 256 tokens), sums of
  gate weights 4: so 100,000 documents x 48 layers x 128 experts stay below 4 GB. An array of counts and one of gate mass took 16.

Few permutations suffice: their number changes seconds, not memory. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scale import TOPICS, label_rows, large_trace, manifest, measure

from moe_probe.core.schema import MoeLayer
from moe_probe.recording.trace import Trace, TraceWriter

#: Documents of a shard of counts, and tokens of a document.
SHARD, TOKENS = 1000, 1000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--millions", type=float, nargs="*", default=[1, 2, 4], help="tokens of the traces of tokens")
    parser.add_argument("--thousands", type=float, nargs="*", default=[10, 20, 40], help="documents of the traces of counts")
    parser.add_argument("--layers", type=int, default=16, help="of the traces of counts")
    parser.add_argument("--experts", type=int, default=128, help="of a layer of the traces of counts")
    parser.add_argument("--permutations", type=int, default=99)
    parser.add_argument("--token-limit", type=float, default=100.0, help="MB per million tokens")
    parser.add_argument("--document-limit", type=float, default=5.0, help="bytes per document and expert of a layer")
    return parser.parse_args()


def counts_trace(folder: Path, documents: int, layers: int, experts: int) -> Trace:
    """A trace of counts alone: topics and documents differ in the rates of experts, top-8."""
    path = folder / f"counts-{documents}-{layers}x{experts}"
    if (path / "trace.json").exists() and Trace.open(path).manifest.status == "sealed":
        return Trace.open(path)
    shutil.rmtree(path, ignore_errors=True)
    kinds = tuple(MoeLayer(layer=i, name=f"layer {i}", num_experts=experts, top_k=8) for i in range(layers))
    writer = TraceWriter.create(path, manifest(usage_only=True).model_copy(update={"layers": kinds}))
    rng = np.random.default_rng(0)
    topics = rng.normal(0, 0.3, (TOPICS, layers, experts))
    for first in range(0, documents, SHARD):
        rows = np.arange(first, min(first + SHARD, documents))
        rates = np.exp(topics[rows % TOPICS] + rng.normal(0, 0.3, (len(rows), layers, experts)))
        # 7 of 8 slots on average, so that no document has more selections than slots
        counts = rng.binomial(TOKENS, np.minimum(rates * (7 / rates.sum(-1, keepdims=True)), 0.9))
        mass = (counts * rng.uniform(0.1, 0.15, counts.shape)).astype(np.float32)
        labels = [label | {"text": ""} for label in label_rows(first, len(rows))]
        writer.append_usage(documents=labels, n_tokens=np.full(len(rows), TOKENS), selections=counts, gate_mass=mass)
    return writer.seal()


def measured(trace: Trace, options: argparse.Namespace) -> dict[str, Any]:
    """Analyse a trace, or read what an earlier call measured."""
    print(f"{trace.root.name}: {trace}", file=sys.stderr, flush=True)
    result = measure(trace, options.dir / f"{trace.root.name}-growth", options.permutations)
    (options.dir / f"{trace.root.name}-growth.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def slope(x: list[float], y: list[float]) -> float:
    """Slope of the least-squares line; NaN for a single point."""
    return float(np.polyfit(x, y, 1)[0]) if len(set(x)) > 1 else float("nan")


def table(found: list[dict[str, Any]], x: list[float], unit: str) -> float:
    """Print peaks and CPU seconds of every analysis, in the order of sizes; return the slope of the peak, bytes per unit."""
    head = " | ".join(f"{size:g} {unit}: CPU s | MiB" for size in x)
    print(f"\n| result | {head} | growth, MB per {unit} |\n|---|{'---|---|' * len(x)}---|")

    def line(name: str, cells: list[tuple[float, float]]) -> float:
        growth = slope(x, [peak * 2**30 for _, peak in cells])
        values = " | ".join(f"{cpu:.1f} | {peak * 1024:.0f}" for cpu, peak in cells)
        print(f"| {name} | {values} | {growth / 1e6:.1f} |")
        return growth

    for name in dict.fromkeys(row["analysis"] for row in found[0]["rows"]):
        rows = [next((r for r in result["rows"] if r["analysis"] == name), None) for result in found]
        if all(row is not None and row["peak_gib"] for row in rows):
            line(name, [(row["cpu_seconds"], row["peak_gib"]) for row in rows if row is not None])
    return line("**all**", [(result["cpu_seconds"], result["peak_gib"]) for result in found])


def main() -> None:
    options = arguments()
    options.dir.mkdir(parents=True, exist_ok=True)
    failed = []
    if options.millions:
        sizes = sorted(options.millions)
        found = [measured(large_trace(options.dir, m, TOKENS, usage_only=False), options) for m in sizes]
        growth = table(found, [result["tokens"] / 1e6 for result in found], "M tokens") / 1e6
        print(f"\ntokens: {growth:.0f} MB per million, limit {options.token_limit:.0f}")
        failed += [f"memory grows by {growth:.0f} MB per million tokens"] if growth > options.token_limit else []
    if options.thousands:
        sizes = [round(1000 * n) for n in sorted(options.thousands)]
        found = [measured(counts_trace(options.dir, n, options.layers, options.experts), options) for n in sizes]
        growth = table(found, [n / 1000 for n in sizes], "k documents") / 1000 / (options.layers * options.experts)
        print(f"\ndocuments: {growth:.1f} bytes per document and expert, limit {options.document_limit:g}")
        failed += [f"memory grows by {growth:.1f} bytes per document and expert"] if growth > options.document_limit else []
    if failed:
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
