"""The API reference builds without a warning, covers every public name, and its pages fetch nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moe_probe

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of the reference: built here, or those that `make docs` has just built, where MOE_PROBE_SITE names them."""
    if built := os.environ.get("MOE_PROBE_SITE"):
        return Path(built)
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_public_name_has_a_place(site: Path) -> None:
    pages = "".join(p.read_text(encoding="utf-8") for p in (site / "api").glob("*.html"))
    assert pages, f"{site} has no pages"
    places = {m.rsplit(".", 1)[-1] for m in re.findall(r'id="(moe_probe\.[\w.]+)"', pages)}
    assert [name for name in moe_probe.__all__ if name not in places] == []


def test_pages_fetch_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page.read_text(encoding="utf-8")
        )
        assert not [f for f in fetched if re.match(r"(https?:)?//", f)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
