"""Which files of a run directory the program wrote: ``run --force`` removes these, and nothing else."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from moe_probe.core.files import RUN_FOLDER, OutputKind
from moe_probe.core.own_files import SAE_FILES, TRACE_FILES, OwnFiles
from moe_probe.core.publication import JOURNAL, STAGED

#: Figures of the report.
FIGURES = (
    "ablation",
    "carriers",
    "coactivation",
    "expert_topics",
    "explained",
    "layers",
    "load",
    "maps",
    "routing_predicted",
    "sae_pareto",
    "token_classes",
    "topic_panels",
    "topics",
    "tree_subjects",
)
#: Sections of the report, which have a Markdown file each.
SECTIONS = (
    *("verdicts", "alerts", "topics", "explained", "experts", "layers", "kinds", "labels", "pairs", "combinations", "maps"),
    *("carriers", "features", "matches", "predicted", "tree", "saes", "causes"),
    *("card", "cost", "published", "methods", "data", "glossary"),
)
#: What a ledger may name as written by a stage: a run that another version made has results of other names.
_LISTED = re.compile(r"results/\w[\w.-]*\.(?:parquet|json)|figures/\w[\w.-]*\.(?:png|svg|pdf)")
_LOGS = r"logs/(?:stages\.json|llm_cache\.jsonl|error-[\w-]+\.log)"
_SAE = r"sae/layer_\d{2,}/width_[^/]+"
_TRAINING = r"sae/training/layer_[^/]+"


@cache
def result_names() -> tuple[str, ...]:
    """Names of all results that a run can have."""
    from moe_probe.core.results import _MADE_BY
    from moe_probe.studies.analyses import _FURTHER, ANALYSES

    made = (name for names in _MADE_BY.values() for name in names)
    return tuple(sorted({analysis.name for analysis in ANALYSES} | set(_FURTHER) | set(made) | {"cost"}))


def run_folder(root: Path) -> OutputKind:
    """Describe a run directory with its own files.

    Parameters
    ----------
    root : Path
        Its ledger, where it has one, names files beside those that every run may have.

    Returns
    -------
    OutputKind
    """
    results = rf"results/(?:asked/)?(?:{'|'.join(result_names())})\.(?:parquet|json)"
    published = rf"results/(?:asked/)?(?:{re.escape(JOURNAL)}|{re.escape(STAGED)}/[\w.-]+)"
    figures = rf"figures/(?:{'|'.join(FIGURES)})\.(?:png|svg|pdf)"
    sae = (
        rf"{_SAE}/(?:{SAE_FILES.files.pattern})|{_TRAINING}/(?:state\.safetensors|\.tmp[A-Za-z0-9]{{6}})|{_TRAINING}\.lease"
    )
    trace, listed = TRACE_FILES, [re.escape(name) for name in _listed(root)]
    marks = "|".join([r"run\.yaml", _LOGS, results, rf"trace/(?:{trace.marks.pattern})"])
    pages = rf"run\.yaml|report(?:_appendix)?\.html|report\.md|report/(?:{'|'.join(SECTIONS)})\.md"
    files = "|".join([pages, _LOGS, results, published, figures, sae, *listed])
    tables = rf"results(?:/asked)?(?:/{re.escape(STAGED)})?"
    folders = rf"{tables}|figures|report|logs|sae|sae/layer_\d{{2,}}|sae/training|{_SAE}|{_TRAINING}"
    own = OwnFiles(
        files=re.compile(rf"{files}|trace/(?:{trace.files.pattern})"),
        folders=re.compile(rf"{folders}|trace|trace/(?:{trace.folders.pattern})"),
        marks=re.compile(marks),
        first=(*(f"trace/{name}" for name in trace.first), "logs/stages.json", "run.yaml"),
    )
    return RUN_FOLDER._replace(own=own)


def _listed(root: Path) -> list[str]:
    """Names of results and figures in the ledger; it comes with the folder, and nothing else of it is believed."""
    try:
        stages = json.loads((root / "logs" / "stages.json").read_bytes())
        files = [name for entry in stages.values() for name in entry["files"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return [name for name in files if isinstance(name, str) and _LISTED.fullmatch(name)]
