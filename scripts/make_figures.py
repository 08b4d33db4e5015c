"""Draw the pictures of docs/figures.md again from the demo run: one PNG file per figure of `run.plot`, and a dark one.

    python scripts/make_figures.py
    python scripts/make_figures.py --run RUN --out FOLDER

Equal results make equal bytes on one machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import moe_probe
from moe_probe.report.plots.drawing import page_png

ROOT = Path(__file__).resolve().parents[1]
#: Largest picture, and all of them together, in bytes.
MOST, MOST_TOGETHER = 60_000, 600_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="analysed run (default: runs/demo)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="folder (default: docs/figures)")
    given = parser.parse_args()
    plot = moe_probe.open(given.run).plot
    given.out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for name, dark in [*((name, False) for name in dir(plot)), ("topics", True)]:
        data = page_png(getattr(plot, name)(dark=dark))
        file = given.out / f"{name}{'_dark' if dark else ''}.png"
        file.write_bytes(data)
        sizes[file.name] = len(data)
        print(f"{file}: {len(data):,} bytes")
    large = [name for name, size in sizes.items() if size > MOST]
    if large or sum(sizes.values()) > MOST_TOGETHER:
        raise SystemExit(f"too large: {', '.join(large) or f'{sum(sizes.values()):,} bytes together'}")


if __name__ == "__main__":
    main()
