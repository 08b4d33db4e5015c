"""Traces from routing that somebody else recorded: files or arrays in, a sealed trace out.

`table` reads the interchange table (with `tablefile`, `columns`), `responses` the answers of vLLM and SGLang (with
`answers`, `routed`), `fingerprints` the files of GPT-OSS-MoE-ExpertFingerprinting. Each of them makes `TokenRecord`
documents, which `records` surveys (`survey`), plans (`plan`) and writes; your own arrays go there directly.
"""

from moe_probe.recording.importers.fingerprints import import_fingerprints
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.records import import_records
from moe_probe.recording.importers.responses import import_responses
from moe_probe.recording.importers.table import import_table
from moe_probe.recording.importers.token_record import SourceRows, TokenRecord

__all__ = [
    "ImportOptions",
    "ImportSource",
    "SourceRows",
    "TokenRecord",
    "import_fingerprints",
    "import_records",
    "import_responses",
    "import_table",
]
