"""What the experts of a mixture-of-experts language model specialise in.

Data goes one way, and every room imports from those before it:

- `core` plain data, text, files, statistics; `models` models that are watched; `recording` a corpus and a model → a trace.
- `experts` a trace → tables about experts; `sae` activations → sparse autoencoders; `features` these → tables about
  features.
- `studies` experts, features and model together; `report` tables → the report; `runs` settings → a run directory.
- `cli` the command line; `testing` planted traces and tiny models.

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

#: Public names by the module they are in; a name is imported when it is first used.
_PUBLIC = {
    "core.errors": ("MoeProbeError",),
    "core.results": ("Result", "Results"),
    "recording.trace": ("Trace", "TraceWriter", "merge_traces", "verify"),
    "recording.corpus": ("Corpus", "Columns"),
    "models": ("load_model", "self_check", "find_moe_layers", "RoutingCapture"),
    "recording.collect": ("collect_trace", "CollectOptions"),
    "recording.importers": (
        "import_table",
        "import_responses",
        "import_fingerprints",
        "import_sglang_distribution",
        "import_imatrix",
    ),
    "experts.usage": ("layer_usage", "expert_usage", "coactivation_table"),
    "experts.topics": ("expert_topics", "expert_labels"),
    "studies.verdicts": ("topic_verdicts", "Rules"),
    "report": ("write_report",),
    "experts.explain": (
        "explain_routing",
        "topic_beyond_vocabulary",
        "expert_token_classes",
        "expert_tokens",
        "expert_positions",
        "vocabulary_baseline",
    ),
    "experts.clusters": ("cluster_routing", "combinations", "expert_groups", "expert_similarity", "weight_similarity"),
    "experts.duplicates": ("near_duplicates",),
    "experts.published": ("published_metrics", "router_saturation"),
    "runs.run": ("Run",),
    "report.unit_card": ("expert_card", "feature_card"),
    "studies.compare": ("compare_runs", "Comparison"),
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["open", *sorted(_WHERE)]

if TYPE_CHECKING:
    from pathlib import Path

    from moe_probe.recording.trace import Trace
    from moe_probe.runs.run import Run


def open(path: str | Path) -> Trace | Run:
    """Open a run directory as a `Run`, or a trace by itself as a `Trace`; a `Run` is a `Trace` with more to it.

    Raises
    ------
    MoeProbeError
        When there is neither, or the trace is unfinished or damaged.
    """
    from pathlib import Path

    from moe_probe.recording.trace import Trace
    from moe_probe.runs.run import Run

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
