"""Traces from routing that somebody else recorded: files or arrays in, a sealed trace out.

One file per format:

- `table` the interchange table: `tablefile` its files and columns, `columns` their values as arrays.
- `responses` answers of vLLM and SGLang: `answers` finds the fields of each version, `routed` decodes the arrays of
  experts, `sequence` joins those of prompt and answer.
- `fingerprints` the files of GPT-OSS-MoE-ExpertFingerprinting.
- `recording_files` what engines record, a file each: `imatrix` importance matrices of llama.cpp (`gguf` reads their
  container), `sglang_distribution` and `sglang_tokens` SGLang's expert-distribution recorder (`torch_file` reads files of
  ``torch.save``); `recordings` counts and labels of such files.
- `arrays` routing token by token in NumPy or safetensors arrays; `usage` counts or fractions per document, whose tokens
  `fractions` recovers, and the long tables and sums by topic of `usage_table`; `arrayfile` opens arrays safely, `labels`
  reads the table of documents beside them.

Shared by all, in the order of the data; your own arrays go to `records` directly:

- `options` the settings of an import (layers, numbers of experts, tokenizer ...); `jsonrows` objects of JSON files and
  their labels.
- `token_record` one document as it was recorded, with the rows of its file for messages; `tokens` text of token ids.
- `survey` the first pass: finds what is wrong (row, reason), and what is constant, as warm-up requests and dense layers
  are.
- `plan` decides which layers and tokens are kept, and how many experts a layer has; refuses or warns of constant tokens.
- `records` ends every import of tokens: surveys, plans, writes.

Of records that have counts only:

- `usage_block` some documents with their counts.
- `usage_survey` the first pass: finds what is wrong (document, layer); `usage_fit` the tokens and experts per token behind
  the counts.
- `usage_records` ends every import of counts: surveys, writes.
"""

from moe_probe.recording.importers.arrays import import_arrays
from moe_probe.recording.importers.fingerprints import import_fingerprints
from moe_probe.recording.importers.options import ImportOptions, ImportSource, LabelColumns
from moe_probe.recording.importers.recording_files import import_imatrix, import_sglang_distribution
from moe_probe.recording.importers.records import import_records
from moe_probe.recording.importers.responses import import_responses
from moe_probe.recording.importers.table import import_table
from moe_probe.recording.importers.token_record import SourceRows, TokenRecord
from moe_probe.recording.importers.usage import import_usage
from moe_probe.recording.importers.usage_block import UsageBlock
from moe_probe.recording.importers.usage_records import import_usage_records

__all__ = [
    "ImportOptions",
    "ImportSource",
    "LabelColumns",
    "SourceRows",
    "TokenRecord",
    "UsageBlock",
    "import_arrays",
    "import_fingerprints",
    "import_imatrix",
    "import_records",
    "import_responses",
    "import_sglang_distribution",
    "import_table",
    "import_usage",
    "import_usage_records",
]
