"""Traces from routing that somebody else recorded: the interchange table, vLLM, SGLang, fingerprint files, your arrays."""

from moe_probe.recording.importers.fingerprints import import_fingerprints
from moe_probe.recording.importers.records import ImportOptions, Recording, import_records
from moe_probe.recording.importers.responses import decode_sglang, import_responses
from moe_probe.recording.importers.survey import TokenRecord
from moe_probe.recording.importers.table import import_table

__all__ = [
    "ImportOptions",
    "Recording",
    "TokenRecord",
    "decode_sglang",
    "import_fingerprints",
    "import_records",
    "import_responses",
    "import_table",
]
