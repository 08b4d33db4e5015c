"""Results -> sections. Later analyses add a function here and a line in `compose`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moe_probe import plots
from moe_probe.report.content import Picture, Report, Section, Table, listed, number, probability
from moe_probe.report.experts import experts_section
from moe_probe.report.features import features_section, features_summary, sae_section
from moe_probe.report.rivals import classes_section, explained_section, labels_section
from moe_probe.report.together import clusters_section, combinations_section, published_section
from moe_probe.report.units import carriers_section, causes_section, matches_section, predicted_section

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.results import Result
    from moe_probe.schema import Manifest
    from moe_probe.trace import Trace

#: Layers drawn one panel each; a model with more shows those where topics move routing most.
_PANELS = 8
_ROWS = 25
_FEW_GROUPS = 20


def compose(trace: Trace, results: Mapping[str, Result]) -> Report:
    """Arrange what was found: the verdicts first, then what they rest on."""
    makers: tuple[tuple[str, Callable[[Mapping[str, Result]], Section | None]], ...] = (
        ("verdicts", _verdicts), ("expert_topics", _expert_topics), ("explained", explained_section),
        ("expert_token_classes", classes_section), ("layers", _layers), ("expert_labels", labels_section),
        ("coactivation", _coactivation), ("combinations", combinations_section), ("clusters", clusters_section),
        ("carriers", carriers_section), ("ablation", causes_section), ("experts", experts_section),
        ("routing_predicted", predicted_section), ("matches", matches_section),
        ("sae_quality", sae_section), ("features", features_section), ("published", published_section))
    made = (maker(results) for name, maker in makers if name in results)
    sections = tuple(section for section in made if section is not None)
    citations = dict.fromkeys(c for r in results.values() for c in r.citations)
    return Report(
        title=f"What the experts of {_short(trace.manifest.model.id)} specialise in",
        summary=_summary(trace, results), sections=sections, card=_card(trace.manifest, results),
        alerts=tuple(_alerts(trace, results)), citations=tuple(citations))


def _short(name: str) -> str:
    """Last two parts of a path or repository name: enough to know it by, nothing of the machine."""
    return "/".join(name.rstrip("/").split("/")[-2:])


def _summary(trace: Trace, results: Mapping[str, Result]) -> tuple[str, ...]:
    m = trace.manifest
    lines = [f"{m.n_documents:,} documents ({m.n_tokens:,} tokens, {trace.documents['topic'].nunique()} topics) were "
             f"run through {len(m.layers)} mixture-of-experts layer{'s' if len(m.layers) > 1 else ''}; every choice of the "
             "routers was recorded."]
    if "verdicts" in results:
        table = results["verdicts"].table
        yes = table[table["verdict"].isin(["expert", "group"])]
        lines.append(
            f"{len(yes)} of {len(table)} topics have an expert of their own by the rules below"
            + (f": {listed(sorted(yes['topic']))}." if len(yes) else ".") + _more(table))
    if "layers" in results:
        best = _best_decoding(results["layers"].table)
        if best is not None:
            lines.append(best)
    told = features_summary(results)
    return (*lines, told) if told else tuple(lines)


def _more(verdicts: pd.DataFrame) -> str:
    """What features and causes add, in a sentence each."""
    text = ""
    only = verdicts[verdicts["verdict"] == "feature only"]
    if len(only):
        has = "has" if len(only) == 1 else "have"
        text += f" {len(only)} more {has} a feature but no expert: {listed(sorted(only['topic']))}."
    if "causal" in verdicts and (verdicts["causal"] != "not tested").any():
        sure = verdicts[(verdicts["causal"] == "confirmed") & verdicts["verdict"].isin(["expert", "group"])]
        n = int(verdicts["verdict"].isin(["expert", "group"]).sum())
        text += f" Knocking experts out confirms {len(sure)} of {n}."
    return text


def _best_decoding(layers: pd.DataFrame) -> str | None:
    if layers["decode_accuracy"].isna().all():
        return None
    row = layers.loc[layers["decode_accuracy"].idxmax()]
    return (f"All experts of one layer together say more: from layer {int(row['layer'])} alone, the topic of an unseen "
            f"document is guessed right {row['decode_accuracy']:.0%} of the time "
            f"({row['decode_baseline']:.0%} with shuffled topics).")


def _card(m: Manifest, results: Mapping[str, Result]) -> dict[str, str]:
    experts = ", ".join(str(n) for n in sorted({x.num_experts for x in m.layers}))
    slots = ", ".join(str(n) for n in sorted({x.top_k for x in m.layers}))
    card = {
        "model": _short(m.model.id) + (f" at {m.model.revision}" if m.model.revision else ""),
        "architecture": m.model.architecture + (
            f", {m.model.n_parameters / 1e6:,.1f} M parameters" if m.model.n_parameters else ""),
        "weights": f"{m.model.dtype}; fingerprint of routers and experts {m.model.fingerprint[:16]}"
        if m.model.fingerprint else "not known (imported trace)",
        "routing": f"{len(m.layers)} layers, experts {experts}, top-k {slots}, gate weights "
        + ("kept" if m.has_weights else "not known"),
        "corpus": f"{m.corpus.name}, {m.n_documents:,} documents, {m.n_tokens:,} tokens"
        + (f", hash {m.corpus.hash[:16]}" if m.corpus.hash else ""),
    }
    if m.windowing:
        card["windows"] = (f"at most {m.windowing.max_length:,} tokens; longer documents in windows that repeat "
                           f"{m.windowing.overlap:,} tokens of context")
    if "expert_topics" in results:
        params = results["expert_topics"].params
        within = f" within {params['strata']}" if params["strata"] else ""
        card["statistics"] = (
            f"{params['topics']} {params['label']}s over {params['groups']:,} independent groups of documents; "
            f"{params['permutations']:,} permutations{within}; error rate {params['alpha']:g}; halves {params['halves']}; "
            f"does any layer depend on the {params['label']}: p {probability(params['model_p'])}")
        card["seed"] = str(results["expert_topics"].seed)
    card["versions"] = ", ".join(f"{k} {v}" for k, v in m.versions.items()) or "imported"
    card["repeat with"] = "moe-probe run --config run.yaml --out NEW (run.yaml lies beside this report)"
    return card


def _alerts(trace: Trace, results: Mapping[str, Result]) -> list[str]:
    out = []
    groups = trace.documents.groupby("topic")["group"].nunique()
    few = groups[groups < _FEW_GROUPS]
    if len(few):
        out.append(f"Few documents: {listed([f'{t} ({n})' for t, n in few.items()])}. Under {_FEW_GROUPS} a topic's own "
                   "expert can be missed.")
    if not trace.manifest.has_weights:
        out.append("Gate weights are not known: an expert chosen with little weight counts as much as any other.")
    if trace.manifest.corpus.skipped_rows:
        out.append(f"{trace.manifest.corpus.skipped_rows:,} bad rows of the corpus were left out.")
    if "experts" in results:
        table = results["experts"].table
        dead = table[table["load"] == 0]
        if len(dead):
            out.append(f"{len(dead)} of {len(table)} experts were never chosen on this corpus (layers "
                       f"{listed([str(x) for x in sorted(dead['layer'].unique())])}).")
    if "left_out" in results:
        out += [f"Left out: {row['analysis']} ({row['reason']})." for _, row in results["left_out"].table.iterrows()]
    sources: dict[str, list[str]] = {}
    for result in results.values():
        for warning in result.warnings:
            sources.setdefault(warning, []).append(result.name.replace("_", " "))
    # a sample's size means something only with the name of what was measured on it
    out += [f"{listed(names)}: {warning[0].lower()}{warning[1:]}" if warning.startswith(("Measured on", "Only "))
            else warning for warning, names in sources.items()]
    return out


def _missing(value: Any) -> bool:
    """Whether a cell of a nullable column is empty."""
    import pandas as pd

    return bool(pd.isna(value))


def _lift(row: Any) -> str:
    if math.isnan(row["log2_lift"]):
        return "–"
    low, high = (number(float(2 ** row[c])) for c in ("ci_low", "ci_high"))
    return f"{number(float(2 ** row['log2_lift']))}× [{low}, {high}]"


def _where(row: Any) -> str:
    if _missing(row["layer"]):
        return "–"
    several = "+" in str(row.get("experts", ""))
    return (f"layer {int(row['layer'])}, experts {str(row['experts']).replace('+', ', ')}" if several else
            f"layer {int(row['layer'])}, expert {int(row['expert'])}")


def _verdicts(results: Mapping[str, Result]) -> Section:
    result = results["verdicts"]
    table = result.table
    full = results.get("expert_topics")
    rows = []
    for _, row in table.iterrows():
        evidence = _evidence(row, full.table if full is not None else None)
        rows.append((row["topic"], row["verdict"], "; ".join(p for p in (evidence, _feature(row), _cause(row)) if p),
                     row["reason"]))
    n_yes = int(table["verdict"].isin(["expert", "group"]).sum())
    finding = ("No topic has an expert of its own." if n_yes == 0 else
               f"{n_yes} of {len(table)} topics {'has' if n_yes == 1 else 'have'} an expert of "
               f"{'its' if n_yes == 1 else 'their'} own.")
    return Section(
        title="Is there a chemistry expert? One row per topic", finding=finding,
        blocks=(Table(("topic", "verdict", "best candidate and evidence for", "reason and evidence against"),
                      tuple(rows), marks="verdict",
                      note="Lift: the expert's share of the topic's selections over its share of all selections, "
                      "with a 95 % interval. q: false-discovery rate over all layers, experts and topics. Guessing "
                      "power: chance that a document of the topic uses the expert more than another document does "
                      "(0.5 is chance)."),),
        how=result.caption,
        limits="A verdict is about this corpus: a topic's documents share more than their subject (source, style). Words "
        "are ruled out one by one; turns of phrase are not.")


def _evidence(row: Any, expert_topics: pd.DataFrame | None) -> str:
    if _missing(row["layer"]):
        return "–"
    parts = [f"{_where(row)}: lift {_lift(row)}", f"q {probability(row['q_value'])}"]
    if not math.isnan(row["log2_beyond_words"]):
        parts.append(f"{number(float(2 ** row['log2_beyond_words']))}× what the topic's words predict "
                     f"(q {probability(row['q_beyond_words'])})")
    if not math.isnan(row["auroc_expert"]):
        parts.append(f"guessing power {number(float(row['auroc_expert']))}")
    if expert_topics is not None and not _missing(row["expert"]):
        one = expert_topics[(expert_topics["layer"] == row["layer"]) & (expert_topics["expert"] == row["expert"])
                            & (expert_topics["topic"] == row["topic"])].iloc[0]
        parts.append(f"takes {one['share']:.0%} of the topic's selections")
        parts.append("found again on held-out documents" if one["replicated"] else "not found again on held-out "
                     "documents")
    return ", ".join(parts)


def _feature(row: Any) -> str:
    """The best feature for the topic, beside the best expert."""
    if _missing(row.get("auroc_feature")):
        return ""
    return (f"best feature {row['feature']}: guessing power {number(float(row['auroc_feature']))} on held-out documents, "
            f"{float(row['feature_beyond_expert']):+.2f} against the best expert")


def _cause(row: Any) -> str:
    """What the loss does without the unit of the verdict."""
    if _missing(row.get("ablation_delta_nats")):
        return ""
    return (f"without {row['ablation_unit']} the topic's loss changes by {row['ablation_delta_nats']:+.3f} nats "
            f"[{row['ablation_low']:+.3f}, {row['ablation_high']:+.3f}], "
            f"{'causally confirmed' if row['causal'] == 'confirmed' else 'which does not set it apart'}")


def _strongest_layers(expert_topics: pd.DataFrame) -> list[int]:
    layers = sorted(expert_topics["layer"].unique())
    if len(layers) <= _PANELS:
        return [int(x) for x in layers]
    strength = expert_topics.groupby("layer")["log2_lift"].var()
    return sorted(int(x) for x in strength.nlargest(_PANELS).index)


def _expert_topics(results: Mapping[str, Result]) -> Section:
    result = results["expert_topics"]
    table = result.table
    claimed = table[table["significant"] & (table["log2_lift"] > 0)]
    strong = claimed.sort_values("log2_lift", ascending=False, kind="stable").head(_ROWS)
    layers = _strongest_layers(table)
    rows = tuple(
        (str(int(r["layer"])), str(int(r["expert"])), r["topic"], _lift(r), f"{r['share']:.1%}",
         probability(r["p_value"]), probability(r["q_value"]), "yes" if r["replicated"] else "no")
        for _, r in strong.iterrows())
    n_again = int(claimed["replicated"].sum())
    finding = (f"{len(claimed):,} of {len(table):,} pairs of expert and topic go together more than chance allows; "
               f"{n_again:,} of them were found again on held-out documents.")
    chosen = "all layers" if len(layers) == table["layer"].nunique() else (
        f"the {len(layers)} layers where lifts differ most")
    blocks: list[Table | Picture | str] = [Picture(
        "expert_topics", plots.topic_heatmap(table, layers=layers), finding,
        f"log2 lift of every expert (columns) for every topic (rows), {chosen}. 1 means twice as often as on "
        "average, −1 half as often; colours end where the bar has its tips. A dot: significant and above average; a "
        "star: found again on held-out documents.")]
    if rows:
        blocks.append(Table(("layer", "expert", "topic", "lift [95 %]", "share of topic", "p", "q", "replicated"), rows,
                            note=f"The {len(rows)} strongest of {len(claimed):,}; all are in "
                            "results/expert_topics.parquet."))
    return Section(title="Which experts are used more for which topic?", finding=finding, blocks=tuple(blocks),
                   how=result.caption,
                   limits="Experts of one layer share the selections, so that a rise of one is a fall of others: "
                   "neighbouring claims are not independent findings.")


def _layers(results: Mapping[str, Result]) -> Section:
    result = results["layers"]
    table = result.table
    low, high = table["effective_experts"].min(), table["effective_experts"].max()
    passing = table[table["mi_topic_p"] <= results["expert_topics"].params.get("alpha", 0.05)] if (
        "expert_topics" in results) else table[table["mi_topic_p"] <= 0.05]
    finding = (f"Each layer uses as many experts as {number(float(low), 1)} to {number(float(high), 1)} equally loaded "
               f"ones; topics move the routing of {len(passing)} of {len(table)} layers.")
    blocks: list[Table | Picture | str] = []
    if "experts" in results:
        blocks.append(Picture(
            "load", plots.load_heatmap(results["experts"].table), "Load of every expert by layer",
            "How often each expert is chosen, relative to an even share (1). A cross marks an expert never chosen."))
    blocks.append(Picture(
        "layers", plots.layer_profile(table), finding,
        "Left: number of equally used experts with the same entropy. Middle: what one selection tells of the topic, "
        "in bits, less what shuffled topics give. Right: how often the topic of an unseen document is guessed right "
        "from its shares of all experts of the layer."))
    columns = ("layer", "entropy_bits", "effective_experts", "load_cv", "mi_topic_bits", "mi_topic_null_bits",
               "mi_topic_p", "decode_accuracy", "decode_baseline")
    heads = ("layer", "entropy (bits)", "effective experts", "load CV", "bits of topic", "same, shuffled", "p",
             "topic decoded", "same, shuffled")
    rows = []
    for _, r in table.iterrows():
        rows.append((str(int(r["layer"])), *(
            probability(r[c]) if c == "mi_topic_p" else number(float(r[c]), 4 if c.startswith("mi_") else 2)
            for c in columns[1:])))
    blocks.append(Table(heads, tuple(rows)))
    return Section(title="How are experts used, layer by layer?", finding=finding, blocks=tuple(blocks),
                   how=result.caption,
                   limits="Bits per selection are small where a document's many selections together still give its "
                   "topic away; compare both columns. The load is of this corpus, not of the training data.")


def _coactivation(results: Mapping[str, Result]) -> Section:
    import numpy as np

    result = results["coactivation"]
    table = result.table
    pairs = table[(table["expert_a"] < table["expert_b"]) & (table["tokens"] > 0)]
    if pairs.empty:
        return Section(title="Which experts work together?", finding="Each token goes to one expert: there are no pairs.",
                       how=result.caption)
    layers = sorted(int(x) for x in pairs["layer"].unique())
    spread = pairs.assign(log=np.log2(pairs["lift"])).groupby("layer")["log"].var()
    shown = layers if len(layers) <= _PANELS + 1 else sorted(int(x) for x in spread.nlargest(_PANELS + 1).index)
    often = pairs[pairs["tokens"] >= 50].sort_values("lift", ascending=False, kind="stable").head(10)
    blocks: list[Table | Picture | str] = [Picture(
        "coactivation", plots.coactivation_heatmap(table, layers=shown), "Pairs of experts chosen for the same token",
        "For each pair of experts of a layer: tokens that chose both, over the number expected if the two were chosen "
        "independently (log2; 0 is chance).")]
    finding = "No pair of experts is chosen for the same token in 50 tokens or more."
    if len(often):
        top = often.iloc[0]
        finding = (f"Experts {int(top['expert_a'])} and {int(top['expert_b'])} of layer {int(top['layer'])} are chosen "
                   f"together {number(float(top['lift']), 1)} times as often as independent choices would be.")
        blocks.append(Table(
            ("layer", "experts", "tokens", "times expected"),
            tuple((str(int(r["layer"])), f"{int(r['expert_a'])} and {int(r['expert_b'])}", number(int(r["tokens"])),
                   number(float(r["lift"]))) for _, r in often.iterrows()),
            note="The ten pairs furthest above chance among those seen in at least 50 tokens."))
    return Section(title="Which experts work together?", finding=finding, blocks=tuple(blocks), how=result.caption,
                   limits="A fixed number of slots makes pairs avoid each other a little by itself: below 0 is the "
                   "rule, not a finding.")
