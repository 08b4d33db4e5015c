"""Description of the features of one SAE: labels with scores, topics, densities, and excerpts for cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.features.labels.excerpts import Excerpts
from moe_probe.features.labels.rule_labels import Labels, label_by_rules, nearest
from moe_probe.features.topic_enrichment import Enrichment, enrich, group_rates

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings, SplitFirings
    from moe_probe.features.labels.context import TokenContext
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import Sae

#: Least held-out balanced accuracies of a good label: against any silent tokens, and against tokens on which the feature
#: of nearest direction fires.
GOOD_SCORE, GOOD_HARD_SCORE = 0.8, 0.7


@dataclass(frozen=True)
class LabelSettings:
    """How features are labelled and tested.

    Attributes
    ----------
    by, finer : str
        Label column that features are tested against, and a finer division (None or absent: not tested).
    strata : str, optional
        Label column within which labels are permuted; a column is not tested within itself.
    cards : int
        Features of each SAE with excerpts, chosen by `choose_cards`.
    permutations : int
    alpha : float
        Error rate of the topic test.
    seed : int
    """

    by: str = "topic"
    finer: str | None = "subtopic"
    strata: str | None = None
    cards: int = 8
    permutations: int = 1000
    alpha: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class FeatureTables:
    """Tables of one SAE: one row per feature, and one row per excerpt of the features with a card."""

    features: pd.DataFrame
    cards: pd.DataFrame
    warnings: tuple[str, ...] = ()


def describe_features(
    trace: Trace, sae: Sae, context: TokenContext, firings: SplitFirings, settings: LabelSettings | None = None
) -> FeatureTables:
    """Label all features of an SAE, score the labels on held-out text, and draw excerpts.

    Parameters
    ----------
    trace : Trace
    sae : Sae
    context : TokenContext
        Of the same trace.
    firings : SplitFirings
        Of training and held-out documents.
    settings : LabelSettings, optional

    Returns
    -------
    FeatureTables
        ``features``: ``layer, width, feature, label, label_score`` (held-out balanced accuracy), ``topic`` ("" where none
        passes), ``auroc_topic`` (held-out documents; of the best topic, passing or not), ``density, top_tokens,
        label_rule, label_source, label_precision, label_recall, label_hard_score, good, best_topic, topic_log2_lift,
        topic_ci_low, topic_ci_high, topic_q, nearest, nearest_cosine, max_activation, n_firings`` (held-out tokens), and
        ``<finer>, <finer>_q``.

    Raises
    ------
    MoeProbeError
        When one part holds no tokens.
    """
    settings = settings or LabelSettings()
    decoder = sae.W_dec.detach().float().numpy()
    labels = label_by_rules(context, *firings, decoder=decoder)
    neighbour = nearest(decoder, alive=firings.train.counts > 0)
    table = _label_columns(sae.config.layer, labels, firings)
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    table["nearest"], table["nearest_cosine"] = neighbour, (unit * unit[neighbour]).sum(1)
    table["max_activation"], table["n_firings"] = _largest(firings.train), firings.held_out.counts
    warnings: list[str] = []
    for column, add in ((settings.by, _add_topics), (settings.finer, _add_finer)):
        if column is None:
            continue
        try:
            add(table, _enrichment(trace, context, firings, column, settings), column)
        except MoeProbeError as error:
            warnings.append(f"Features were not tested against {column}: {error}")
    return FeatureTables(table, _cards(trace, table, firings.held_out, settings), tuple(warnings))


def _enrichment(
    trace: Trace, context: TokenContext, firings: SplitFirings, column: str, settings: LabelSettings
) -> Enrichment:
    strata = None if settings.strata == column else settings.strata
    rates = [group_rates(trace.documents, context.document, f, label=column, strata=strata) for f in firings]
    return enrich(*rates, permutations=settings.permutations, alpha=settings.alpha, seed=settings.seed)


def _label_columns(layer: int, labels: Labels, firings: SplitFirings) -> pd.DataFrame:
    """Columns of the labels, and those of topics with nothing in them yet."""
    import pandas as pd

    n, detection = len(labels.text), labels.detection
    with np.errstate(invalid="ignore"):
        good = (detection.score >= GOOD_SCORE) & ~(detection.hard_score < GOOD_HARD_SCORE)
    return pd.DataFrame(
        {
            "layer": layer,
            "width": n,
            "feature": np.arange(n),
            "label": labels.text,
            "label_score": detection.score,
            "topic": "",
            "auroc_topic": np.nan,
            "density": firings.train.counts / len(firings.train.rows),
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
        }
    )


def _add_topics(table: pd.DataFrame, topics: Enrichment, _column: str) -> None:
    names, alive = np.array([*topics.topics, ""], dtype=object), table["density"] > 0
    table["topic"], table["best_topic"] = names[topics.topic], np.where(alive, names[topics.best], "")
    table["auroc_topic"] = np.where(alive, topics.auroc, np.nan)
    table["topic_log2_lift"], table["topic_q"] = topics.log2_lift, topics.q_value
    table["topic_ci_low"], table["topic_ci_high"] = topics.ci_low, topics.ci_high


def _add_finer(table: pd.DataFrame, topics: Enrichment, column: str) -> None:
    table[column] = np.array([*topics.topics, ""], dtype=object)[topics.topic]
    table[f"{column}_q"] = topics.q_value


def _largest(firings: Firings) -> np.ndarray:
    out = np.zeros(firings.matrix.shape[1], dtype=np.float32)
    np.maximum.at(out, firings.matrix.indices, firings.matrix.data)
    return out


def choose_cards(table: pd.DataFrame, *, n: int, seed: int) -> list[tuple[int, str]]:
    """Choose the features to show.

    Half of them separate the documents of a topic best, each of another topic; a quarter are the best labelled of each kind
    of rule in turn; a quarter are drawn at random among the other living ones.

    Parameters
    ----------
    table : pandas.DataFrame
        ``features`` of `describe_features`.
    n : int
        How many.
    seed : int

    Returns
    -------
    list of (feature, ``best`` | ``topic`` | ``drawn``)
    """
    alive = table[(table["n_firings"] >= 10) & (table["label"] != "")]
    topical = alive[alive["topic"] != ""].sort_values("auroc_topic", ascending=False, kind="stable")
    chosen = [(int(f), "topic") for f in topical.drop_duplicates("topic")["feature"].head(n // 2)]
    left = alive[~alive["feature"].isin([f for f, _ in chosen])]
    good = left[left["good"]]
    rank = good.groupby("label_rule")["label_score"].rank(ascending=False, method="first")
    ranked = good.assign(rank=rank).sort_values(["rank", "label_score"], ascending=[True, False], kind="stable")
    best = [(int(f), "best") for f in ranked["feature"].head(n // 4)]
    rest = left[~left["feature"].isin([f for f, _ in best])]["feature"].to_numpy(copy=True)
    drawn = np.random.default_rng(seed).permutation(rest)[: n - len(chosen) - len(best)]
    return [*chosen, *best, *((int(f), "drawn") for f in drawn)]


def _cards(trace: Trace, table: pd.DataFrame, held_out: Firings, settings: LabelSettings) -> pd.DataFrame:
    import pandas as pd

    excerpts = Excerpts(trace, held_out, seed=settings.seed)
    names = trace.documents["document"].to_numpy()
    columns = ["layer", "width", "feature", "chosen", "part", "document", "row", "tokens", "activations"]
    where = int(table["layer"].iloc[0]), len(table)
    rows = [
        (*where, feature, reason, e.part, str(names[e.document]), e.row, list(e.tokens), list(e.activations))
        for feature, reason in choose_cards(table, n=settings.cards, seed=settings.seed)
        for e in excerpts.draw(feature, neighbour=int(table["nearest"][feature]))
    ]
    return pd.DataFrame(rows, columns=columns)
