from .collect import EncodedDocument, Encoder, Window, collect_trace
from .corpus import Columns, Corpus, Document
from .importers import (
    ImportOptions,
    import_fingerprints,
    import_imatrix,
    import_responses,
    import_sglang_distribution,
    import_table,
)
from .run_model import load_model_of
from .rundir import RunDirectory
from .settings import CollectOptions, CorpusSettings
from .trace import Trace, TraceWriter, verify

__all__ = [
    "CollectOptions",
    "Columns",
    "Corpus",
    "CorpusSettings",
    "Document",
    "EncodedDocument",
    "Encoder",
    "ImportOptions",
    "RunDirectory",
    "Trace",
    "TraceWriter",
    "Window",
    "collect_trace",
    "import_fingerprints",
    "import_imatrix",
    "import_responses",
    "import_sglang_distribution",
    "import_table",
    "load_model_of",
    "verify",
]
