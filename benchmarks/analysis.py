"""Seconds and memory of `moe-probe analyze` on a large trace, analysis by analysis.

    python benchmarks/analysis.py [--dir FOLDER] [--documents 2000] [--tokens 500] [--layers 16] [--experts 64] [--top-k 8]

Draws a trace (kept in --dir, so that a second call only analyses) and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.trace import Trace
from moe_probe.studies.analyses import ANALYSES, AnalysisSettings, analyze
from moe_probe.testing import PlantedExpert, planted_trace


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--topics", type=int, default=20)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=500, help="tokens of a document")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    return parser.parse_args()


def open_trace(options: argparse.Namespace, folder: Path) -> Trace:
    """The trace of an earlier call, or a new one."""
    try:
        return Trace.open(folder / "trace")
    except MoeProbeError:
        planted = (PlantedExpert(3, 5, "topic", 2), PlantedExpert(7, 9, "token", 4), PlantedExpert(11, 1, "position"))
        return planted_trace(
            folder / "trace",
            planted=planted,
            topics=options.topics,
            documents_per_topic=options.documents // options.topics,
            tokens=options.tokens,
            n_layers=options.layers,
            num_experts=options.experts,
            top_k=options.top_k,
            vocabulary=30_000,
        )


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.dir or Path(temporary)
        trace = open_trace(options, folder)
        print(f"{trace}\n\n| analysis | seconds |\n|---|---|")
        started = mark = time.perf_counter()
        seconds: dict[str, float] = {}

        def say(text: str) -> None:
            nonlocal mark
            name = text.split(":")[0]
            if name in {a.name for a in ANALYSES}:
                now = time.perf_counter()
                seconds[name], mark = now - mark, now

        analyze(trace, folder / "results", settings=AnalysisSettings(), say=say)
        total = time.perf_counter() - started
        for name, value in seconds.items():
            print(f"| {name} | {value:.1f} |", flush=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| **all** | **{total:.1f}** |\n\npeak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
