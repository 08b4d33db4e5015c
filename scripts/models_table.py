"""Rebuild docs/models.md and docs/models.svg from the records that ship with the package, or add a record to them.

    python scripts/models_table.py
    python scripts/models_table.py --add RUN --name NAME --corpus-note TEXT

Equal records make equal bytes of the page, and on one machine of the figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_probe.core.files import write_text
from moe_probe.recording.rundir import RunDirectory
from moe_probe.report.plots import topic_information
from moe_probe.report.plots.drawing import svg_bytes
from moe_probe.studies.models_table import SHIPPED, add_row, measure_row, models_page, shipped_rows

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--add", type=Path, metavar="RUN", help="analysed run whose row is added")
    parser.add_argument("--name", default="", help="name of its model")
    parser.add_argument("--corpus-note", default="", help="what its corpus is, in a few words")
    given = parser.parse_args()
    if given.add is not None:
        row = measure_row(RunDirectory.open(given.add), name=given.name, note=given.corpus_note)
        print(add_row(row, SHIPPED, shipped=True))
    rows = shipped_rows()
    write_text(DOCS / "models.md", models_page(rows))
    (DOCS / "models.svg").write_bytes(svg_bytes(topic_information(rows)))
    print(f"{DOCS / 'models.md'}: {len(rows)} records")


if __name__ == "__main__":
    main()
