"""The public records: how each is imported, what is checked, and how it is analysed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from moe_probe.core.results import Result
from moe_probe.experts.published import domain_specialisation, esft_scores
from moe_probe.recording.trace import Trace

#: What the figures of the OLMoE paper show: (choices, layer) -> percent of the most specialised pair.
OLMOE = {
    ("top_k", 0): 97.7,
    ("top_k", 7): 84.8,
    ("top_k", 15): 93.7,
    ("top_1", 0): 51.6,
    ("top_1", 7): 51.9,
    ("top_1", 15): 57.3,
}
#: Largest error of a score that its authors print with four digits.
ROUNDING = 5.0001e-5

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Study:
    """One record: how it is imported and analysed, what is checked, and what its page shows."""

    name: str
    model: str
    corpus: str
    imports: Callable[[Path, Path], Iterator[list[str]]]
    check: Callable[[Path, Trace], Tables]
    labels: tuple[str, ...] = ("topic",)
    names: Mapping[str, str] = field(default_factory=dict)  # in the table of models, by label, where there are several
    after: Callable[[Path], Tables] = lambda _: {}


def table_of(rows: dict[str, str]) -> pd.DataFrame:
    """Two columns: what, and its value."""
    return pd.DataFrame({"what": list(rows), "value": list(rows.values())})


def mixtral_imports(data: Path, trace: Path) -> Iterator[list[str]]:
    """One prompt a document; all prompts of a subject share their examples, so that the subject is the unit."""
    yield [
        *("import", f"{data / 'mixtral-mmlu/fractions.npz'}", "--format", "usage", "--top-k", "2", "--out", str(trace)),
        *("--topic-column", "subcategory", "--subtopic-column", "subject", "--group-column", "subject"),
        *("--label", "category", "--model-id", "mistralai/Mixtral-8x7B"),
    ]


def mixtral_check(data: Path, trace: Trace) -> Tables:
    """Rows sum to 1; counts from the recovered numbers of tokens give the fractions back."""
    with np.load(data / "mixtral-mmlu/fractions.npz") as file:
        fractions = file["fractions"]
    assert fractions.shape == (14_042, 32, 8), fractions.shape
    off = float(np.abs(fractions.sum(2, dtype=np.float64) - 1).max())
    assert off < 1e-5, off
    usage = trace.usage()
    tokens = usage.documents["n_tokens"].to_numpy()
    back = float(np.abs(usage.selections / (2.0 * tokens[:, None, None]) - fractions).max())
    assert back < 1e-6, back
    assert (usage.selections.sum(2) == 2 * tokens[:, None]).all()
    rows = {
        "prompts x layers x experts": " x ".join(f"{n:,}" for n in fractions.shape),
        "largest distance of a row's sum from 1": f"{off:.1g}",
        "tokens of a prompt, from the denominators": f"{tokens.min():,} to {tokens.max():,} (median {np.median(tokens):,.0f})",
        "largest distance of counts / (2 tokens) from the fractions": f"{back:.1g}",
    }
    return {"checks": table_of(rows)}


def glm_imports(data: Path, trace: Path) -> Iterator[list[str]]:
    """One shard of a domain a document."""
    yield [
        *("import", f"{data / 'glm-5.2-domains/usage.npz'}", "--format", "usage", "--top-k", "8", "--out", str(trace)),
        *("--topic-column", "domain", "--model-id", "zai-org/GLM-5.2"),
    ]


def glm_check(data: Path, trace: Trace) -> Tables:
    """Counts add up to 8 a token in every layer; how many experts a domain has at growing lifts."""
    usage = trace.usage()
    tokens = usage.documents["n_tokens"].to_numpy()
    assert usage.selections.shape == (80, 75, 256), usage.selections.shape
    assert (usage.selections.sum(2) == 8 * tokens[:, None]).all()
    assert tokens.sum() == 1_931_616, tokens.sum()
    rows = {
        "shards x layers x experts": " x ".join(f"{n:,}" for n in usage.selections.shape),
        "tokens": f"{tokens.sum():,}",
        "selections a token, in each of the 75 layers": "8",
        "tokens of a shard": f"{tokens.min():,} to {tokens.max():,}",
    }
    return {"checks": table_of(rows)}


def glm_experts(results: Path) -> Tables:
    """Count experts by domain at growing lifts: significant, with 1 % of the domain's selections in the layer or more."""
    pairs = Result.load(results, "expert_topics").table
    used = pairs[pairs["significant"] & (pairs["share"] >= 0.01) & (pairs["log2_lift"] > 0)]
    rows = []
    for domain, part in used.groupby("topic"):
        row: dict[str, object] = {"domain": domain}
        for least in (2.0, 4.0):
            row[f"lift > {least:g}, whole interval"] = int((part["ci_low"] > np.log2(least)).sum())
        row["in layers (lift > 2)"] = part.loc[part["ci_low"] > 1, "layer"].nunique()
        row["of these replicated"] = int((part["replicated"] & (part["ci_low"] > 1)).sum())
        strongest = part.loc[part["log2_lift"].idxmax()]
        low, high = (2 ** strongest[name] for name in ("ci_low", "ci_high"))
        row["largest lift [95 %]"] = f"{2 ** strongest['log2_lift']:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row)
    return {"experts of domains": pd.DataFrame(rows)}


def esft_imports(data: Path, trace: Path) -> Iterator[list[str]]:
    """One trace for each task, then both in one; the model's first layer is dense."""
    parts = []
    for task in ("law", "intent"):
        parts.append(str(trace.parent / task))
        more = ["--layers", "1-26", "--num-experts", "64", "--model-id", "deepseek-ai/ESFT-vanilla-lite"]
        yield [
            "import",
            f"{data / 'esft-deepseek' / task}.npz",
            "--format",
            "arrays",
            "--topic",
            task,
            *more,
            "--out",
            parts[-1],
        ]
    yield ["merge", *parts, "--out", str(trace)]


def esft_check(data: Path, trace: Trace) -> Tables:
    """Compare scores with the authors' to rounding, and the sets of experts that they tune, order included."""
    scores = esft_scores(trace, p=0.2, digits=4).table
    layers = sorted(layer.layer for layer in trace.layers)
    rows = []
    for task in ("law", "intent"):
        summary = json.loads((data / f"esft-deepseek/{task}_summary.json").read_text())
        tuned = json.loads((data / f"esft-deepseek/{task}_config.json").read_text())["experts"]
        own = scores[scores["task"] == task]
        row: dict[str, object] = {"task": task}
        for column, theirs in (("token_selection_ratio", "token_scores"), ("average_gate_score", "gate_scores")):
            published = np.array([[v for _, v in sorted(by_number(summary[theirs][str(layer)]))] for layer in layers])
            difference = float(
                np.abs(own.pivot(index="layer", columns="expert", values=column).to_numpy() - published).max()
            )
            assert difference <= ROUNDING, (task, column, difference)
            row[f"largest difference of {column.replace('_', ' ')}"] = f"{difference:.2g}"
        same = 0
        for layer in layers:
            chosen = own[(own["layer"] == layer) & own["chosen_by_ratio"]]
            ranked = chosen.assign(score=chosen["token_selection_ratio"].round(4)).sort_values(
                ["score", "expert"], ascending=[False, True], kind="stable"
            )
            same += ranked["expert"].tolist() == tuned[str(layer)]
        assert same == len(layers), (task, same)
        row["published sets at p = 0.2, order included"] = f"{same} of {len(layers)} layers"
        rows.append(row)
    return {"checks": pd.DataFrame(rows)}


def by_number(scores: dict[str, float]) -> list[tuple[int, float]]:
    """Experts of a layer as numbers, with their scores."""
    return [(int(expert), score) for expert, score in scores.items()]


def olmoe_imports(data: Path, trace: Path) -> Iterator[list[str]]:
    """One sum of selections for each domain."""
    yield ["import", f"{data / 'olmoe-counts/expert_counts.json'}", "--format", "usage", "--out", str(trace)]


def olmoe_check(data: Path, trace: Trace) -> Tables:
    """Reproduce the domain specialisation that the paper's figures show."""
    counts = json.loads((data / "olmoe-counts/expert_counts.json").read_text())
    rows = []
    for (choices, layer), published in OLMOE.items():
        place = counts["layers"].index(layer)
        values = np.array([counts[choices][domain][place] for domain in counts["domains"]])
        share = domain_specialisation(values, values.sum(1) / (counts["k"] if choices == "top_k" else 1))
        domain, expert = np.unravel_index(share.argmax(), share.shape)
        assert abs(100 * share.max() - published) <= 0.05, (choices, layer, share.max())
        rows.append(
            {
                "choices": choices.replace("_", " "),
                "layer": layer,
                "expert": int(expert),
                "domain": counts["domains"][domain],
                "published": f"{published} %",
                "reproduced": f"{100 * share.max():.1f} %",
            }
        )
    return {"checks": pd.DataFrame(rows)}


def gpt_imports(data: Path, trace: Path) -> Iterator[list[str]]:
    """The interchange table."""
    yield [
        *("import", f"{data / 'gpt-oss-20b/routing.parquet'}", "--num-experts", "32", "--model-id", "openai/gpt-oss-20b"),
        *("--out", str(trace)),
    ]


def gpt_check(data: Path, trace: Trace) -> Tables:
    """Count what is there."""
    assert (trace.n_tokens, trace.manifest.n_documents) == (156_069, 503)
    return {}


STUDIES = (
    Study(
        "mixtral",
        "Mixtral-8x7B",
        "MMLU, few-shot prompts",
        mixtral_imports,
        mixtral_check,
        ("topic", "category", "subtopic"),
        {"topic": "Mixtral-8x7B (MMLU subcategories)", "category": "Mixtral-8x7B (MMLU categories)"},
    ),
    Study("glm_5_2", "GLM-5.2", "ten domains, 8 shards each", glm_imports, glm_check, after=glm_experts),
    Study("esft", "DeepSeek-V2-Lite (ESFT)", "two tasks of ESFT", esft_imports, esft_check),
    Study("olmoe", "OLMoE-1B-7B", "five domains, summed", olmoe_imports, olmoe_check),
    Study("gpt_oss_20b", "gpt-oss-20b", "answers to MMLU, GPQA and SORRY-Bench", gpt_imports, gpt_check),
)
