"""From an analysed run to its row: what result tables and the trace's manifest say, in numbers that can be published."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.files import sha256_json
from moe_probe.core.results import Result
from moe_probe.core.schema import Evidence
from moe_probe.core.stats import labelled_documents
from moe_probe.core.text import is_missing
from moe_probe.core.units import parse_members
from moe_probe.studies.models_table.row import CorpusFacts, Decoding, Information, ModelRow, TopicRow, Words, rounded
from moe_probe.studies.verdicts import UNTESTED, Rules, grades

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.rundir import RunDirectory


def measure_row(run: RunDirectory, *, name: str = "", note: str = "") -> ModelRow:
    """Make the row of a model from an analysed run.

    Verdicts are those of usage alone, so that models with and without SAEs are judged alike. From summed counts neither
    information nor decoding nor verdicts are taken: there is nothing to test them with.

    Parameters
    ----------
    run : RunDirectory
    name : str
        Name of the model; by default that of the trace (of a path, its last part).
    note : str
        What the corpus is, in a few words.

    Returns
    -------
    ModelRow

    Raises
    ------
    MoeProbeError
        When the run has not been analysed.
    """
    from moe_probe import __version__

    manifest, results = run.manifest, run.results
    effects = results["expert_topics"]
    label = effects.param("label", str)
    known = effects.params
    strata = effects.param("strata", str) if known.get("strata") is not None else None
    counted = manifest.evidence is Evidence.COUNTS
    rules = Rules() if counted else _rules(_verdicts(run))
    return ModelRow(
        model=name or _plain_name(manifest.model.id),
        layers=len(manifest.layers),
        experts=tuple(sorted({layer.num_experts for layer in manifest.layers})),
        top_k=tuple(sorted({layer.top_k for layer in manifest.layers})),
        evidence=manifest.evidence,
        corpus=_corpus(run, label, strata, note),
        information=Information() if counted else _information(results["layers"], effects),
        decoding=Decoding() if counted else _decoding(results["layers"].table),
        topics=_topics(run, effects, label, rules),
        lift_threshold=rounded(2**rules.min_log2_lift) or 0.0,
        alpha=effects.param("alpha", float, least=0, most=1) if "alpha" in known else rules.alpha,
        permutations=effects.param("permutations", int, least=0) if known.get("permutations") else 0,
        seed=int(effects.seed or 0),
        versions={**dict(sorted(manifest.versions.items())), "moe_probe": manifest.versions.get("moe_probe", __version__)},
    )


def _plain_name(model: str) -> str:
    """Name of a model: paths of this machine give their last part, names on a hub (``owner/name``) stay."""
    path = PurePosixPath(model.replace("\\", "/"))
    is_path = path.is_absolute() or len(path.parts) > 2 or model[:1] in ".~" or "\\" in model
    return path.name if is_path else model


def _verdicts(run: RunDirectory) -> Result:
    return run.results["usage_verdicts" if "usage_verdicts" in run.results else "verdicts"]


def _rules(verdicts: Result) -> Rules:
    usual = vars(Rules())
    return Rules(**{name: verdicts.param(name, type(usual[name])) for name in verdicts.params if name in usual})


def _corpus(run: RunDirectory, label: str, strata: str | None, note: str) -> CorpusFacts:
    manifest, documents = run.manifest, run.documents
    keep, labels, groups = labelled_documents(documents, label=label)
    named = zip(documents["document"].astype(str), labels, groups, keep, strict=True)
    facts = sorted([document, str(topic), str(group)] for document, topic, group, kept in named if kept)
    return CorpusFacts(
        name=_plain_name(manifest.corpus.name),
        note=note,
        hash=manifest.corpus.hash,
        documents_hash=sha256_json(facts),
        documents=len(facts),
        tokens=manifest.n_tokens,
        units=len({group for _, _, group in facts}),
        label=label,
        strata=strata,
    )


def _information(layers: Result, effects: Result) -> Information:
    """Bits per selection: mean and range over layers, beside their null and the most that they could be."""
    table = layers.table
    bits, null = table["mi_topic_bits"].to_numpy(float), table["mi_topic_null_bits"].to_numpy(float)
    if not np.isfinite(bits).any() or not np.isfinite(null).any():
        return Information()
    n_topics = (layers if layers.params.get("topics") else effects).param("topics", int, least=1, most=1e9)
    # information is at most the entropy of either side (Cover and Thomas 2006, section 2.4)
    possible = np.minimum(np.log2(n_topics), table["entropy_bits"].to_numpy(float))
    possible[possible <= 0] = np.nan  # all selections go to one expert
    share = bits / possible
    best, p = int(np.nanargmax(bits)), table["mi_topic_p"].to_numpy(float)
    alpha = effects.param("alpha", float, least=0, most=1) if "alpha" in effects.params else Rules().alpha
    mean_null = float(np.nanmean(null))
    return Information(
        mean=rounded(np.nanmean(bits)),
        smallest=rounded(np.nanmin(bits)),
        largest=rounded(bits[best]),
        largest_layer=int(table["layer"].iloc[best]),
        null=rounded(mean_null),
        over_null=rounded(np.nanmean(bits) / mean_null) if mean_null > 0 else None,
        share_mean=rounded(np.nanmean(share)),
        share_null=rounded(np.nanmean(null / possible)),
        share_smallest=rounded(np.nanmin(share)),
        share_largest=rounded(np.nanmax(share)),
        p=rounded(effects.params.get("model_p")),
        layers_significant=int((p <= alpha).sum()) if np.isfinite(p).any() else None,
    )


def _decoding(table: pd.DataFrame) -> Decoding:
    accuracy = table["decode_accuracy"].to_numpy(float)
    if not np.isfinite(accuracy).any():
        return Decoding()
    best, shuffled = int(np.nanargmax(accuracy)), table["decode_baseline"].to_numpy(float)
    return Decoding(
        best=rounded(accuracy[best]),
        best_layer=int(table["layer"].iloc[best]),
        median=rounded(np.nanmedian(accuracy)),
        shuffled_median=rounded(np.nanmedian(shuffled)),
        shuffled_best=rounded(np.nanmax(shuffled)),
        majority=rounded(table["decode_majority"].iloc[best]) if "decode_majority" in table else None,
    )


def _topics(run: RunDirectory, effects: Result, label: str, rules: Rules) -> tuple[TopicRow, ...]:
    keep, labels, groups = labelled_documents(run.documents, label=label)
    evidence = run.manifest.evidence
    verdicts: dict[str, dict[str, Any]] = {}
    if evidence is not Evidence.COUNTS:
        table = _verdicts(run).table
        verdicts = table.assign(grade=grades(table)).set_index("topic").to_dict("index")
    rows = []
    for topic in sorted(map(str, effects.table["topic"].unique())):
        pairs = effects.table[effects.table["topic"].astype(str) == topic]
        verdict = verdicts.get(topic, {"verdict": "none", "grade": UNTESTED})
        n_groups = len(set(groups[keep & (labels == topic)]))
        tested = str(verdict["grade"]) != UNTESTED
        rows.append(
            TopicRow(
                topic=topic,
                groups=n_groups,
                tested=tested,
                # features are left to the verdicts of a run: here every model is judged by its experts
                verdict=verdict["verdict"] if verdict["verdict"] in ("expert", "group") else "none",
                grade=str(verdict["grade"]),
                detectable_lift=_ratio(verdict.get("detectable_log2_lift")),
                **_unit(verdict, pairs, evidence, rules),
            )
        )
    return tuple(rows)


def _unit(verdict: dict[str, Any], pairs: pd.DataFrame, evidence: Evidence, rules: Rules) -> dict[str, Any]:
    """Describe the expert or group that a verdict names; where it names none, the expert with the topic's largest lift."""
    words: Words = "not testable" if evidence is not Evidence.WORDS else "not judged"
    if is_missing(verdict.get("layer")):
        large = pairs[(pairs["share"] >= rules.min_share) & pairs["log2_lift"].notna()]
        if large.empty:
            return {"words": words}
        best = large.sort_values(["log2_lift", "layer", "expert"], ascending=[False, True, True], kind="stable").iloc[0]
        untested = dict.fromkeys(("lift_low", "lift_high", "lift_held_out")) if evidence is Evidence.COUNTS else {}
        found = {"experts": (int(best["expert"]),), "replicated": _replicated(best, evidence), "words": words}
        return found | _sizes(best) | untested
    experts = tuple(int(e) for e in parse_members(str(verdict["experts"])))
    replicated: bool | None = verdict["verdict"] in ("expert", "group")
    if not replicated:
        same = pairs[(pairs["layer"] == verdict["layer"]) & (pairs["expert"] == verdict["expert"])]
        replicated = _replicated(same.iloc[0], evidence) if len(same) else None
    out = {"experts": experts, **_sizes(verdict), "replicated": replicated, "words": words}
    asked = {name: verdict.get(name) for name in ("q_beyond_words", "log2_beyond_words", "words_coverage")}
    if evidence is not Evidence.WORDS or any(is_missing(value) for value in asked.values()):
        return out
    q, ratio, coverage = (float(str(value)) for value in asked.values())
    if coverage >= rules.min_coverage:
        out["words"] = "ruled out" if q <= rules.alpha and ratio >= rules.min_log2_beyond else "not ruled out"
    return out | {"words_ratio": _ratio(ratio)}


def _sizes(row: Any) -> dict[str, Any]:
    return {
        "layer": int(row["layer"]),
        "lift": _ratio(row["log2_lift"]),
        "lift_low": _ratio(row.get("ci_low")),
        "lift_high": _ratio(row.get("ci_high")),
        "lift_held_out": _ratio(row.get("log2_lift_replication")),
        "share": rounded(row["share"]),
    }


def _replicated(row: pd.Series, evidence: Evidence) -> bool | None:
    tried = evidence is not Evidence.COUNTS and not is_missing(row.get("p_replication", row.get("replicated")))
    return bool(row["replicated"]) if tried else None


def _ratio(log2: Any) -> float | None:
    """Ratio from its base-2 logarithm, None where it is missing or too large to mean anything."""
    return None if is_missing(log2) or not -60 < float(log2) < 60 else rounded(2 ** float(log2))
