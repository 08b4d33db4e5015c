"""Make the notebooks in reports/ again, and the runs that they are about where these are missing.

    python scripts/make_notebooks.py

runs/demo takes `moe-probe demo` (minutes), runs/early some two minutes; runs that are there are used as they are.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from moe_probe.report.notebook import write_notebook

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    "runs/early": (
        "run",
        "data/model/early",
        "--corpus",
        "data/probe_corpus.jsonl",
        "--label",
        "register",
        "--strata",
        "register",
        "--dtype",
        "float32",
    ),
    "runs/demo": ("demo",),
}
NOTEBOOKS = {
    "early_against_final": ("compare_runs", {"runs": ["runs/early", "runs/demo"], "names": ["early", "final"]}),
    "topic_against_register": ("compare_labels", {"runs": ["runs/demo"], "by": ["topic", "register"]}),
    "sae_widths": ("compare_saes", {"runs": ["runs/demo"]}),
}


def main() -> None:
    """Write the notebooks, executed."""
    for run, words in RUNS.items():
        if not (ROOT / run / "results" / "verdicts.parquet").exists():
            subprocess.run([sys.executable, "-m", "moe_probe", *words, "--out", run, "--resume"], cwd=ROOT, check=True)
    for name, (template, values) in NOTEBOOKS.items():
        path = ROOT / "reports" / f"{name}.ipynb"
        write_notebook(template, {"root": "..", **values}, path, title=name.replace("_", " "), html="--html" in sys.argv)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
