"""The stage `report`: results in, report out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.progress import Say
from moe_probe.core.publication import Published
from moe_probe.core.stage import Stage


@dataclass(frozen=True)
class ReportStage(Stage):
    """Write report.html, report.md and the figures."""

    name = "report"

    @override
    def settings(self) -> Any:
        return []

    @override
    def inputs(self, root: Path) -> Iterable[Path]:
        published = Published.of(root / "results")
        names = [*published.names(".json"), *published.names(".parquet")]
        return [*(published.path(name) for name in names), root / "trace" / "trace.json"]

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.report import write_report

        return write_report(root)
