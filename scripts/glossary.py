"""Writes docs/glossary.md from the terms of the report: python scripts/glossary.py."""

from __future__ import annotations

from pathlib import Path

from moe_probe.report.glossary import glossary_page

if __name__ == "__main__":
    (Path(__file__).resolve().parents[1] / "docs" / "glossary.md").write_text(glossary_page(), encoding="utf-8")
