"""The faces of a report as texts: everything that Markdown has, and HTML without its links to the glossary."""

from __future__ import annotations

import re
from pathlib import Path


def markdown_of(run: Path) -> str:
    """Read the page in Markdown and the files of its sections behind it."""
    files = [run / "report.md", *sorted((run / "report").glob("*.md"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def html_of(run: Path) -> str:
    """Read the page with its terms as plain words."""
    text = (run / "report.html").read_text(encoding="utf-8")
    text = re.sub(r'&nbsp;<a class="term mark"[^>]*>\?</a>', "", text)
    return re.sub(r'<a class="term"[^>]*>(.*?)</a>', r"\1", text)
