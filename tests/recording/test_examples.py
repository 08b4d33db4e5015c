"""The Python examples of docs/formats.md run as they stand, one for every importer that reads files of Python's making."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_probe.recording.trace import Trace, verify

FORMATS = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
#: Importer -> level of evidence and tokens of the trace that its example makes.
EXPECTED = {
    "import_table": ("tokens with words", 24),
    "import_responses": ("tokens with words", 6),
    "import_fingerprints": ("tokens with words", 9),
    "import_arrays": ("tokens", 200),
    "import_usage": ("documents", 12_000),
    "import_usage_records": ("documents", 7),
}


def examples() -> dict[str, str]:
    blocks = re.findall(r"```python\n(.*?)```", FORMATS.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {call[1]: block for block in blocks if (call := re.search(r"^trace = (import_\w+)\(", block, flags=re.MULTILINE))}


def test_every_importer_has_an_example() -> None:
    from moe_probe.recording import importers

    named = {name for name in importers.__all__ if name.startswith("import_")} - {"import_records"}
    assert named <= set(examples())


@pytest.mark.parametrize("name", list(EXPECTED))
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(examples()[name], f"{FORMATS.name}: {name}", "exec"), {})
    trace = Trace.open(tmp_path / "traces" / "mine")
    assert (trace.manifest.evidence.value, trace.n_tokens) == EXPECTED[name]
    assert verify(trace.root) == []
