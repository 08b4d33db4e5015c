"""All that is said of the features of one SAE: labels with scores, topics, densities, and excerpts for cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.features.labels.excerpts import Excerpts
from moe_probe.features.labels.rule_labels import Labels, label_by_rules, nearest
from moe_probe.features.topic_enrichment import Enrichment, enrich, group_rates

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.features.labels.context import Surroundings
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import Sae

#: A label is called good from these held-out balanced accuracies on: against any silent tokens, and against tokens
#: on which the feature of nearest direction fires.
GOOD_SCORE, GOOD_HARD_SCORE = 0.8, 0.7


@dataclass(frozen=True)
class FeatureTables:
    """Tables of one SAE: a row a feature, and a row an excerpt of the features that get a card."""

    features: pd.DataFrame
    cards: pd.DataFrame
    warnings: tuple[str, ...] = ()


def describe_features(
    trace: Trace,
    sae: Sae,
    text: Surroundings,
    *,
    train: Firings,
    held_out: Firings,
    label: str = "topic",
    finer: str | None = "subtopic",
    cards: int = 8,
    permutations: int = 1000,
    alpha: float = 0.05,
    seed: int = 0,
    strata: str | None = None,
) -> FeatureTables:
    """Label all features of an SAE, score the labels on held-out text, and draw excerpts.

    Parameters
    ----------
    trace : Trace
    sae : Sae
    text : Surroundings
        Of the same trace.
    train, held_out : Firings
        Of training and held-out documents.
    label, finer : str
        Topics that features are tested against, and a finer division (left out where documents have none).
    cards : int
        Features with excerpts, as `choose_cards` takes them.
    permutations, alpha, seed
        Of the topic test.
    strata : str, optional
        Label within which topics are permuted; a label is not tested within itself.

    Returns
    -------
    FeatureTables
        ``features``: ``layer, width, feature, label, label_score`` (held-out balanced accuracy), ``topic`` ("" where none
        passes), ``auroc_topic`` (held-out documents; of the best topic, passing or not), ``density, top_tokens,
        label_rule, label_source, label_precision, label_recall, label_hard_score, good, best_topic, topic_log2_lift,
        topic_ci_low, topic_ci_high, topic_q, <finer>, <finer>_q, nearest, nearest_cosine, max_activation, n_firings``
        (held-out tokens).

    Raises
    ------
    MoeProbeError
        When one part holds no tokens.
    """
    decoder = sae.W_dec.detach().float().numpy()
    labels = label_by_rules(text, train, held_out, decoder=decoder)
    neighbour = nearest(decoder, alive=train.counts > 0)
    warnings: list[str] = []
    options: dict[str, Any] = {"permutations": permutations, "alpha": alpha, "seed": seed, "strata": strata}
    topics = _topics(trace, text, (train, held_out), label, options, warnings)
    subtopics = _topics(trace, text, (train, held_out), finer, options, warnings) if finer else None
    table = _table(
        sae, labels, topics, subtopics, train=train, held_out=held_out, neighbour=neighbour, decoder=decoder, finer=finer
    )
    return FeatureTables(table, _cards(trace, table, held_out, neighbour, n=cards, seed=seed), tuple(warnings))


def _topics(
    trace: Trace,
    text: Surroundings,
    parts: tuple[Firings, Firings],
    label: str,
    options: dict[str, Any],
    warnings: list[str],
) -> Enrichment | None:
    options = dict(options)
    strata = options.pop("strata")
    strata = None if strata == label else strata
    try:
        rates = [group_rates(trace.documents, text.document, f, label=label, strata=strata) for f in parts]
        return enrich(*rates, **options)
    except MoeProbeError as error:
        warnings.append(f"Features were not tested against {label}: {error}")
        return None


def _table(
    sae: Sae,
    labels: Labels,
    topics: Enrichment | None,
    subtopics: Enrichment | None,
    *,
    train: Firings,
    held_out: Firings,
    neighbour: np.ndarray,
    decoder: np.ndarray,
    finer: str | None,
) -> pd.DataFrame:
    import pandas as pd

    n = sae.config.d_sae
    detection = labels.detection
    with np.errstate(invalid="ignore"):
        good = (detection.score >= GOOD_SCORE) & ~(detection.hard_score < GOOD_HARD_SCORE)
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    table = pd.DataFrame(
        {
            "layer": sae.config.layer,
            "width": n,
            "feature": np.arange(n),
            "label": labels.text,
            "label_score": detection.score,
            "topic": "",
            "auroc_topic": np.nan,
            "density": train.counts / len(train.rows),
            "top_tokens": labels.top_words,
            "label_rule": labels.rule,
            "label_source": np.where(labels.rule == "", "none", "rule"),
            "label_precision": detection.precision,
            "label_recall": detection.recall,
            "label_hard_score": detection.hard_score,
            "good": good,
            "best_topic": "",
            "topic_log2_lift": np.nan,
            "topic_ci_low": np.nan,
            "topic_ci_high": np.nan,
            "topic_q": np.nan,
            "nearest": neighbour,
            "nearest_cosine": (unit * unit[neighbour]).sum(1),
            "max_activation": _largest(train),
            "n_firings": held_out.counts,
        }
    )
    alive = train.counts > 0
    if topics is not None:
        names = np.array([*topics.topics, ""], dtype=object)
        table["topic"], table["best_topic"] = names[topics.topic], np.where(alive, names[topics.best], "")
        table["auroc_topic"] = np.where(alive, topics.auroc, np.nan)
        for column, values in (
            ("topic_log2_lift", topics.log2_lift),
            ("topic_ci_low", topics.ci_low),
            ("topic_ci_high", topics.ci_high),
            ("topic_q", topics.q_value),
        ):
            table[column] = values
    if subtopics is not None and finer:
        table[finer] = np.array([*subtopics.topics, ""], dtype=object)[subtopics.topic]
        table[f"{finer}_q"] = subtopics.q_value
    return table


def _largest(firings: Firings) -> np.ndarray:
    out = np.zeros(firings.matrix.shape[1], dtype=np.float32)
    np.maximum.at(out, firings.matrix.indices, firings.matrix.data)
    return out


def choose_cards(table: pd.DataFrame, *, n: int, seed: int) -> list[tuple[int, str]]:
    """Features to show, and why: half those that tell the documents of a topic best, each of another topic; a quarter the
    best labelled of each kind of rule in turn; a quarter drawn at random among the others that are alive.

    Returns
    -------
    list of (feature, ``best`` | ``topic`` | ``drawn``)
    """
    living = table[(table["n_firings"] >= 10) & (table["label"] != "")]
    topical = living[living["topic"] != ""].sort_values("auroc_topic", ascending=False, kind="stable")
    chosen = [(int(f), "topic") for f in topical.drop_duplicates("topic")["feature"].head(n // 2)]
    left = living[~living["feature"].isin([f for f, _ in chosen])]
    good = left[left["good"]]
    rank = good.groupby("label_rule")["label_score"].rank(ascending=False, method="first")
    ranked = good.assign(rank=rank).sort_values(["rank", "label_score"], ascending=[True, False], kind="stable")
    best = [(int(f), "best") for f in ranked["feature"].head(n // 4)]
    rest = left[~left["feature"].isin([f for f, _ in best])]["feature"].to_numpy(copy=True)
    drawn = np.random.default_rng(seed).permutation(rest)[: n - len(chosen) - len(best)]
    return [*chosen, *best, *((int(f), "drawn") for f in drawn)]


def _cards(
    trace: Trace, table: pd.DataFrame, held_out: Firings, neighbour: np.ndarray, *, n: int, seed: int
) -> pd.DataFrame:
    import pandas as pd

    excerpts = Excerpts(trace, held_out, seed=seed)
    names = trace.documents["document"].to_numpy()
    rows = [
        {
            "layer": int(table["layer"].iloc[0]),
            "width": len(table),
            "feature": feature,
            "chosen": chosen,
            "part": e.part,
            "document": str(names[e.document]),
            "row": e.row,
            "tokens": list(e.tokens),
            "activations": list(e.activations),
        }
        for feature, chosen in choose_cards(table, n=n, seed=seed)
        for e in excerpts.of(feature, neighbour=int(neighbour[feature]))
    ]
    columns = ["layer", "width", "feature", "chosen", "part", "document", "row", "tokens", "activations"]
    return pd.DataFrame(rows, columns=columns)
