"""Reports: results in, one self-contained HTML page and the same in Markdown out. Needs no torch."""

from moe_probe.report.build import write_report

__all__ = ["write_report"]
