from .alignment import Aligned, align_experts
from .compared_run import ComparedRun, SharedDocuments, shared_documents
from .comparison import TABLES, Comparison, compare_opened_runs
from .differences import Difference, Estimate, from_draws
from .labels import compare_labels
from .layers import compare_layers
from .opening import compare_runs, open_compared_run, open_compared_runs
from .pairing import Pairing, pair_runs
from .saes import sae_differences, sae_values
from .settings import ComparisonSettings
from .summary import MEASURES, in_words
from .topics import compare_topics
from .verdicts import compare_verdicts, verdict_changes

__all__ = [
    "MEASURES",
    "TABLES",
    "Aligned",
    "ComparedRun",
    "Comparison",
    "ComparisonSettings",
    "Difference",
    "Estimate",
    "Pairing",
    "SharedDocuments",
    "align_experts",
    "compare_labels",
    "compare_layers",
    "compare_opened_runs",
    "compare_runs",
    "compare_topics",
    "compare_verdicts",
    "from_draws",
    "in_words",
    "open_compared_run",
    "open_compared_runs",
    "pair_runs",
    "sae_differences",
    "sae_values",
    "shared_documents",
    "verdict_changes",
]
