"""What differs between runs: model, corpus, label, seed, settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from moe_probe.core.results import Result
from moe_probe.studies.compare.sides import Side


def compare_runs_table(sides: Sequence[Side]) -> Result:
    """List what the runs are, and mark what differs.

    Parameters
    ----------
    sides : sequence of Side

    Returns
    -------
    Result
        ``comparison_runs``: ``what, side, value`` (as text; "" where not known), ``differs``; a row for every fact and
        side. Names of models that are paths are cut to their last two parts.
    """
    import pandas as pd

    facts = [_facts(side) for side in sides]
    names = list(dict.fromkeys(name for found in facts for name in found))
    rows = []
    for name in names:
        values = [str(found.get(name, "")) for found in facts]
        rows += [
            {"what": name, "side": side.name, "value": value, "differs": len(set(values)) > 1}
            for side, value in zip(sides, values, strict=True)
        ]
    return Result("comparison_runs", pd.DataFrame(rows), caption="What the runs are; what differs between them is marked.")


def _facts(side: Side) -> dict[str, Any]:
    m = side.manifest
    layers = m.layers
    tests = side.results.get("expert_topics")
    facts: dict[str, Any] = {
        "model": short_name(m.model.id),
        "revision": m.model.revision or "",
        "architecture": m.model.architecture,
        "weights": m.model.fingerprint[:16],
        "dtype": m.model.dtype,
        "quantisation": m.model.quantization or "",
        "parameters": "" if m.model.n_parameters is None else f"{m.model.n_parameters:,}",
        "MoE layers": len(layers),
        "experts": _several(x.num_experts for x in layers),
        "top-k": _several(x.top_k for x in layers),
        "gate weights": "kept" if m.has_weights else "not known",
        "tokenizer": m.tokenizer_hash[:16],
        "corpus": short_name(m.corpus.name),
        "corpus hash": m.corpus.hash[:16],
        "documents": f"{m.n_documents:,}",
        "tokens": f"{m.n_tokens:,}",
        "window": "" if m.windowing is None else m.windowing.max_length,
        "seed of the trace": m.seed,
        "label": side.label,
    }
    if tests is not None:
        facts |= {
            "labels": tests.params.get("topics", ""),
            "groups of documents": tests.params.get("groups", ""),
            "permuted within": tests.params.get("strata") or "",
            "permutations": tests.params.get("permutations", ""),
            "alpha": tests.params.get("alpha", ""),
            "seed of the tests": "" if tests.seed is None else tests.seed,
        }
    if "sae_quality" in side.results:
        table = side.results["sae_quality"].table
        facts |= {
            "SAE layers": _several(table["layer"]),
            "SAE widths": _several(table["width"]),
            "SAE kind": _several(f"{a}, k {k}" for a, k in zip(table["architecture"], table["k"], strict=True)),
            "SAE reads": _several(table["hook"]),
        }
    else:
        facts |= {"SAE widths": "none"}
    return facts | {name: "" if value is None else value for name, value in side.settings.items() if name not in facts}


def _several(values: Any) -> str:
    return ", ".join(str(v) for v in dict.fromkeys(values))


def short_name(name: str) -> str:
    """The last two parts of a path: whole ones tell of somebody's machine, and hub names have two."""
    return "/".join([part for part in re.split(r"[/\\]", name) if part][-2:])
