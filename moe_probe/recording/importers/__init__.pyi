from .arrays import import_arrays
from .fingerprints import import_fingerprints
from .label_columns import LabelColumns
from .options import ImportOptions, ImportSource
from .recording_files import import_imatrix, import_sglang_distribution
from .records import import_records
from .responses import import_responses
from .table import import_table
from .token_record import SourceRows, TokenRecord
from .usage import import_usage
from .usage_block import UsageBlock
from .usage_records import import_usage_records

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
