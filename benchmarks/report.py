"""Seconds and megabytes of `moe-probe report` on a large model, and that both faces are written without torch.

    python benchmarks/report.py [--dir FOLDER] [--layers 48] [--experts 128] [--topics 20] [--documents 10] [--tokens 40]

Draws a small trace and result tables of the full size (kept in --dir), then times the report and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from moe_probe.report import write_report
from moe_probe.testing import PlantedExpert, planted_results, planted_trace


def arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--topics", type=int, default=20)
    parser.add_argument("--documents", type=int, default=10, help="documents of a topic")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of a document")
    return parser.parse_args()


def main() -> None:
    """Draw the tables where they are missing, time the report, and print a row."""
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        run = options.dir or Path(temporary)
        if not (run / "results").is_dir():
            trace = planted_trace(
                run / "trace",
                planted=(PlantedExpert(3, 5, "topic", 2),),
                topics=options.topics,
                documents_per_topic=options.documents,
                tokens=options.tokens,
                n_layers=options.layers,
                num_experts=options.experts,
                top_k=options.top_k,
            )
            planted_results(trace, run / "results", width=1024)
        started = time.perf_counter(), time.process_time()
        files = write_report(run)
        seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        size = {path.name: path.stat().st_size / 1e6 for path in files}
        images = sum(v for name, v in size.items() if name.endswith(".png"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = {
            "layers": options.layers,
            "experts": options.experts,
            "topics": options.topics,
            "seconds": f"{seconds:.1f}",
            "of CPU": f"{cpu:.1f}",
            "HTML, MB": f"{size['report.html']:.2f}",
            "Markdown, MB": f"{size['report.md']:.2f}",
            "figures, MB": f"{images:.2f}",
            "peak, GiB": f"{peak:.1f}",
            "torch loaded": "torch" in sys.modules,
        }
        for cells in (row, ["---"] * len(row), row.values()):
            print(f"| {' | '.join(str(c) for c in cells)} |")


if __name__ == "__main__":
    main()
