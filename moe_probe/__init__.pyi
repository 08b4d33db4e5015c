import pathlib

from .core.errors import MoeProbeError
from .core.results import Result, Results
from .experts.clusters import cluster_routing, combinations, expert_groups, expert_similarity, weight_similarity
from .experts.duplicates import near_duplicates
from .experts.explain import (
    expert_positions,
    expert_token_classes,
    expert_tokens,
    explain_routing,
    topic_beyond_vocabulary,
    vocabulary_baseline,
)
from .experts.published import published_metrics, router_saturation
from .experts.topics import expert_labels, expert_topics
from .experts.usage import coactivation_table, expert_usage, layer_usage
from .models import RoutingCapture, find_moe_layers, load_model, self_check
from .recording.collect import CollectOptions, collect_trace
from .recording.corpus import Columns, Corpus
from .recording.importers import (
    import_arrays,
    import_fingerprints,
    import_imatrix,
    import_responses,
    import_sglang_distribution,
    import_table,
    import_usage,
)
from .recording.trace import Trace, TraceWriter, merge_traces, verify
from .report import write_report
from .report.unit_card import expert_card, feature_card
from .runs.run import Run
from .studies.compare import Comparison, compare_runs
from .studies.verdicts import Rules, topic_verdicts

__version__: str

def open(path: str | pathlib.Path) -> Run | Trace: ...

__all__ = [
    "CollectOptions",
    "Columns",
    "Comparison",
    "Corpus",
    "MoeProbeError",
    "Result",
    "Results",
    "RoutingCapture",
    "Rules",
    "Run",
    "Trace",
    "TraceWriter",
    "cluster_routing",
    "coactivation_table",
    "collect_trace",
    "combinations",
    "compare_runs",
    "expert_card",
    "expert_groups",
    "expert_labels",
    "expert_positions",
    "expert_similarity",
    "expert_token_classes",
    "expert_tokens",
    "expert_topics",
    "expert_usage",
    "explain_routing",
    "feature_card",
    "find_moe_layers",
    "import_arrays",
    "import_fingerprints",
    "import_imatrix",
    "import_responses",
    "import_sglang_distribution",
    "import_table",
    "import_usage",
    "layer_usage",
    "load_model",
    "merge_traces",
    "near_duplicates",
    "open",
    "published_metrics",
    "router_saturation",
    "self_check",
    "topic_beyond_vocabulary",
    "topic_verdicts",
    "verify",
    "vocabulary_baseline",
    "weight_similarity",
    "write_report",
]
