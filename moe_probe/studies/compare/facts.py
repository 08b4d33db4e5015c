"""What differs between runs: model, corpus, label, seed, settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from moe_probe.core.results import Result
from moe_probe.core.schema import fingerprint_scheme
from moe_probe.experts.collapse import collapsed_layers
from moe_probe.studies.compare.compared_run import ComparedRun


def run_facts(runs: Sequence[ComparedRun]) -> Result:
    """List what the runs are, and mark what differs.

    Parameters
    ----------
    runs : sequence of ComparedRun

    Returns
    -------
    Result
        ``comparison_runs``: ``what, side, value`` (as text; "" where not known), ``differs``; one row per fact and run.
        Names of models that are paths are cut to their last two parts.
    """
    import pandas as pd

    facts = [_facts(run) for run in runs]
    rows = []
    for name in dict.fromkeys(name for known in facts for name in known):
        values = [str(known.get(name, "")) for known in facts]
        rows += [
            {"what": name, "side": run.name, "value": value, "differs": len(set(values)) > 1}
            for run, value in zip(runs, values, strict=True)
        ]
    return Result("comparison_runs", pd.DataFrame(rows), caption="What the runs are; what differs between them is marked.")


def _weights(fingerprint: str) -> str:
    return fingerprint[:16] + (
        "" if not fingerprint or fingerprint_scheme(fingerprint) else " (as earlier versions computed it)"
    )


def _facts(run: ComparedRun) -> dict[str, Any]:
    m = run.manifest
    layers = m.layers
    tests = run.results.get("expert_topics")
    facts: dict[str, Any] = {
        "model": short_name(m.model.id),
        "revision": m.model.revision,
        "architecture": m.model.architecture,
        "weights": _weights(m.model.fingerprint),
        "dtype": m.model.dtype,
        "quantisation": m.model.quantization,
        "parameters": None if m.model.n_parameters is None else f"{m.model.n_parameters:,}",
        "MoE layers": len(layers),
        "experts": _several(x.num_experts for x in layers),
        "top-k": _several(x.top_k for x in layers),
        "gate weights": "kept" if m.has_weights else "not known",
        "tokenizer": m.tokenizer_hash[:16],
        "corpus": short_name(m.corpus.name),
        "corpus hash": m.corpus.hash[:16],
        "documents": f"{m.n_documents:,}",
        "tokens": f"{m.n_tokens:,}",
        "window": None if m.windowing is None else m.windowing.max_length,
        "seed of the trace": m.seed,
        "label": run.label,
    }
    if tests is not None:
        named = {"labels": "topics", "groups of documents": "groups", "permuted within": "strata"}
        named |= {"permutations": "permutations", "alpha": "alpha"}
        facts |= {name: tests.params.get(param) for name, param in named.items()}
        facts["seed of the tests"] = tests.seed
    if "layers" in run.results:
        facts["collapsed layers"] = _several(collapsed_layers(layers, run.results)) or "none"
    if "sae_quality" in run.results:
        table = run.results["sae_quality"].table
        facts |= {
            "SAE layers": _several(table["layer"]),
            "SAE widths": _several(table["width"]),
            "SAE kind": _several(f"{a}, k {k}" for a, k in zip(table["architecture"], table["k"], strict=True)),
            "SAE reads": _several(table["hook"]),
        }
    else:
        facts |= {"SAE widths": "none"}
    facts |= {name: value for name, value in run.settings.items() if name not in facts}
    return {name: "" if value is None else value for name, value in facts.items()}


def _several(values: Any) -> str:
    return ", ".join(str(v) for v in dict.fromkeys(values))


def short_name(name: str) -> str:
    """Cut a path to its last two parts: whole paths tell of somebody's machine, and names on a hub have two parts."""
    return "/".join([part for part in re.split(r"[/\\]", name) if part][-2:])
