"""The one way into every text file that a user brings: a path in; text or rows with their line numbers out.

- `opener` opens text whatever its compression and encoding: gzip, Zstandard, byte-order marks; refuses what is not UTF-8;
  stdin.
- `jsonrows` JSON Lines, arrays and pretty-printed objects as one sequence of values; `csvrows` comma- or tab-separated
  rows.
- `limits` what a compressed file may unpack to.
- `filelist` the files that a path, a folder or a glob stands for, and the format of each.

What a file is follows from its first bytes, not from its name. Text that is not UTF-8 is refused in a sentence that names
file, line and byte. Zstandard is read by pyarrow, which the package needs anyway; the standard library has it from Python
3.14 on.
"""

from moe_probe.core.textfiles.csvrows import read_csv, refuse_repeated, scan_csv_rows
from moe_probe.core.textfiles.filelist import FileList, expand, format_of, is_hidden
from moe_probe.core.textfiles.jsonrows import is_unwritable, read_json, read_json_rows, scan_json_rows
from moe_probe.core.textfiles.limits import array_limit, json_memory, too_long
from moe_probe.core.textfiles.opener import BadLineError, open_text, read_stdin, read_text, refuse_no_file

__all__ = [
    "BadLineError",
    "FileList",
    "array_limit",
    "expand",
    "format_of",
    "is_hidden",
    "is_unwritable",
    "json_memory",
    "open_text",
    "read_csv",
    "read_json",
    "read_json_rows",
    "read_stdin",
    "read_text",
    "refuse_no_file",
    "refuse_repeated",
    "scan_csv_rows",
    "scan_json_rows",
    "too_long",
]
