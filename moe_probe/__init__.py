"""What the experts of a mixture-of-experts language model specialise in.

Names are loaded when they are first used: ``import moe_probe`` loads neither torch nor anything heavy.

Examples
--------
>>> import moe_probe
>>> run = moe_probe.open("runs/demo")
>>> run.verdicts.table[["topic", "verdict", "sentence"]]
>>> result = moe_probe.expert_topics(run, strata="register")
>>> result.table.query("significant and replicated").sort_values("log2_lift").tail()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "MoeProbeError": "errors", "Result": "results", "Trace": "trace", "TraceWriter": "trace", "verify": "trace",
    "Corpus": "corpus", "Columns": "corpus", "load_model": "models", "self_check": "models",
    "find_moe_layers": "models", "RoutingCapture": "models", "collect_trace": "collect", "CollectOptions": "collect",
    "import_table": "importers", "import_responses": "importers", "layer_usage": "usage", "expert_usage": "usage",
    "coactivation_table": "usage", "expert_topics": "alignment", "topic_verdicts": "verdicts", "write_report": "report",
    "expert_labels": "alignment", "explain_routing": "explain", "topic_beyond_vocabulary": "explain",
    "expert_token_classes": "explain", "expert_tokens": "explain", "expert_positions": "explain",
    "vocabulary_baseline": "explain", "cluster_routing": "clusters",
    "near_duplicates": "duplicates", "combinations": "clusters", "expert_groups": "clusters", "expert_similarity": "clusters",
    "weight_similarity": "clusters", "published_metrics": "published", "router_saturation": "published",
    "import_fingerprints": "importers", "Rules": "verdicts",
    "Run": "rundir", "Results": "results", "expert_card": "cards", "feature_card": "cards",
    "compare_runs": "pipeline.compare", "Comparison": "compare",
}
__all__ = ["open", *sorted(_WHERE)]

if TYPE_CHECKING:
    from pathlib import Path

    from moe_probe.rundir import Run
    from moe_probe.trace import Trace


def open(path: str | Path) -> Trace | Run:
    """Open a run directory as a `Run`, or a trace by itself as a `Trace`; a `Run` is a `Trace` with more to it.

    Raises
    ------
    MoeProbeError
        When there is neither, or the trace is unfinished or damaged.
    """
    from pathlib import Path

    from moe_probe.rundir import Run
    from moe_probe.trace import Trace

    root = Path(path)
    if not (root / "trace.json").exists() and (root / "trace" / "trace.json").exists():
        return Run.open(root)
    return Trace.open(root)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'moe_probe' has no attribute '{name}'")
    return getattr(import_module(f"moe_probe.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
