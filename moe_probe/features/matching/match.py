"""Experts matched with the features of a run's SAEs: pairs, predictions of routing, and the best predictors of each topic."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.pieces import standing
from moe_probe.core.progress import Bar, Say, track
from moe_probe.core.results import Result
from moe_probe.core.stats.auroc import AUROC
from moe_probe.core.stats.bootstrap import BOOTSTRAP
from moe_probe.core.text import figure, quoted
from moe_probe.features.matching.feature_experts import feature_experts
from moe_probe.features.matching.feature_sets import feature_sets
from moe_probe.features.matching.match_features import (
    MatchSettings,
    Rivals,
    match_features,
    measure_features,
    router_cosines,
)
from moe_probe.features.matching.random_directions import iter_random_firings
from moe_probe.features.matching.routing_prediction import RoutingData, predict_routing
from moe_probe.features.matching.routing_split import RoutingSplit
from moe_probe.features.matching.signals import one_hot, pair_codes, read_selections, read_tokens
from moe_probe.features.matching.topic_predictors import TOKENS, TopicPredictors
from moe_probe.features.run_saes import RunSaes

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.features.firing import SplitFirings
    from moe_probe.features.matching.counts import Scores
    from moe_probe.features.matching.match_features import MeasuredFeatures
    from moe_probe.features.run_saes import OpenSae
    from moe_probe.models import LoadedModel
    from moe_probe.recording.rundir import RunDirectory

_SOURCES = (
    "Mann and Whitney 1947, guessing power (AUROC), DOI 10.1214/aoms/1177730491",
    "Benjamini and Hochberg 1995, false discovery rate, DOI 10.1111/j.2517-6161.1995.tb02031.x",
    "Jonker and Volgenant 1987, the assignment problem, DOI 10.1007/BF02278710",
    (
        "Lasy and Cai 2026 (RouterInterp), recall of routing from SAE latents, https://library.sparai.org/reports/"
        "interpreting-mixture-of-experts-routing-through-sparse-autoencoders-z8khhk/"
    ),
)
_RESAMPLES = 500
#: Columns of ``matches`` that come first.
_FRONT = ["layer", "expert", "width", "feature", "score", "q_value", "heldout_score", "rank"]


def match(
    run: RunDirectory,
    settings: MatchSettings | None = None,
    *,
    loaded: LoadedModel | None = None,
    saes: RunSaes | None = None,
    say: Say = print,
) -> tuple[Result, ...]:
    """Match experts with the features of all SAEs of a run.

    Parameters
    ----------
    run : RunDirectory
    settings : MatchSettings, optional
    loaded : LoadedModel, optional
        The trace's model, for the directions of its routers' rows.
    saes : RunSaes, optional
        Of the run; pass the same object to `label` and `evaluate` to encode its documents once.
    say : callable
        Takes a line of progress.

    Returns
    -------
    tuple of Result
        ``matches``, ``match_baselines``, ``match_sets``, ``routing_predicted``,
        ``experts_predicted``, ``feature_experts``, ``carriers``.

    Raises
    ------
    MoeProbeError
        When the run has no SAEs of all tokens, or they disagree on which documents were held out.
    """
    saes = saes or RunSaes(run)
    tables = _Tables(run, settings or MatchSettings(), loaded)
    for item in track(saes, "match", unit="SAEs"):
        if item.sae.config.experts is not None:
            say(f"{item.name}: an SAE of some experts' tokens, not matched")
            continue
        started = time.monotonic()
        matches = tables.add(item, saes)
        say(f"{item.name}: {_in_words(matches)} ({time.monotonic() - started:.1f} s)")
    return tuple(tables.results())


def _in_words(matches: pd.DataFrame) -> str:
    best = matches[matches["rank"] == 1]
    return (
        f"{int(best['significant'].sum())} of {len(best)} experts have a feature that predicts them better than random "
        f"directions, median AUROC {figure(best['heldout_score'].median(), '.3f', 'unknown')}"
    )


class _Tables:
    """The tables of a match, which grow SAE by SAE."""

    def __init__(self, run: RunDirectory, settings: MatchSettings, loaded: LoadedModel | None) -> None:
        self.run, self.settings, self.loaded = run, settings, loaded
        self.selections, self.tokens = read_selections(run), read_tokens(run, label=settings.by)
        self.split: RoutingSplit | None = None
        self.parts: dict[str, list[pd.DataFrame]] = {}
        self.routing_predicted: list[dict[str, Any]] = []
        self.experts_predicted: list[dict[str, Any]] = []

    def add(self, item: OpenSae, saes: RunSaes) -> pd.DataFrame:
        """Add an SAE; return its rows of ``matches``. Firings of one dictionary at a time are in memory."""
        settings, config = self.settings, item.sae.config
        with Bar(item.name, total=settings.n_random + 1, unit="dictionaries") as bar:
            split, measured, l0 = self._of_sae(item, saes, bar)
            scores: list[Scores] = []
            dictionaries = iter_random_firings(item, l0=l0, n=settings.n_random, seed=settings.seed)
            for number in range(settings.n_random):
                bar.update(note=f"random directions {number + 1}")
                firings = next(dictionaries)
                scores.append(split.best_scores(*(f.matrix for f in firings)))
                if not number:
                    bar.update(0, note="routing from random directions")
                    self._predict(config.layer, "random directions", firings, item.name, config.d_sae)
                del firings  # before the next ones are encoded
        self._predict_from_text(split, config.layer)
        matched = match_features(split, measured, Rivals(self.baselines, scores), settings)
        for name, table in (("matches", matched.matches), ("match_baselines", matched.baselines)):
            self._keep(name, table.assign(sae=item.name, width=config.d_sae, sae_layer=config.layer))
        return matched.matches

    def _of_sae(self, item: OpenSae, saes: RunSaes, bar: Bar) -> tuple[RoutingSplit, MeasuredFeatures, float]:
        """Do all that needs the SAE's own firings; return how many latents are active per token with it."""
        firings, settings, config = saes.firings(item), self.settings, item.sae.config
        split = self._split(item.name, firings)
        l0 = firings.train.matrix.nnz / max(len(firings.train.rows), 1)
        bar.update(0, note="pairs")
        cosines = router_cosines(item.sae, self.loaded, self.selections)
        measured = measure_features(split, firings, per_expert=settings.per_expert, cosines=cosines)
        bar.update(0, note="sets of features")
        sets = feature_sets(split, firings, measured.pairs, layer=config.layer, seed=settings.seed)
        self._keep("match_sets", sets.assign(sae=item.name, width=config.d_sae, sae_layer=config.layer))
        bar.update(0, note="routing from features")
        self._predict(config.layer, "features", firings, item.name, config.d_sae)
        bar.update(0, note="experts of features, and topics")
        through = feature_experts(self.selections.of_layer(config.layer, split.held_out), firings.held_out.matrix)
        self._keep("feature_experts", through.assign(sae=item.name, width=config.d_sae, layer=config.layer))
        self.predictors.add_features(item.name, config.layer, firings)
        return split, measured, l0

    def _keep(self, name: str, table: pd.DataFrame) -> None:
        self.parts.setdefault(name, []).append(table)

    def _split(self, name: str, firings: SplitFirings) -> RoutingSplit:
        rows = [f.rows for f in firings]
        if self.split is None:
            self.split = RoutingSplit(self.selections, self.tokens, *rows)
            self.baselines = self.split.baseline_scores()
            self.predictors = TopicPredictors(self.split, resamples=_RESAMPLES, seed=self.settings.seed)
        elif not all(map(np.array_equal, rows, (self.split.train, self.split.held_out))):
            raise MoeProbeError(
                f"{name} was trained with other documents held out",
                "matches would not be comparable",
                "moe-probe sae train --force with one seed",
            )
        return self.split

    def _predict_from_text(self, split: RoutingSplit, layer: int) -> None:
        """Predict a layer from what needs no SAE, once."""
        if all(row["layer"] != layer or row["sae"] for row in self.routing_predicted):
            for name, x in track(list(_text_inputs(split)), f"routing of layer {layer} from text", unit="inputs"):
                self._predict_from(layer, name, (x[split.train], x[split.held_out]), {"sae": "", "width": 0})

    def _predict(self, layer: int, inputs: str, firings: SplitFirings, sae: str, width: int) -> None:
        """Predict the SAE's layer from its features, or from random directions."""
        self._predict_from(layer, inputs, tuple(f.matrix for f in firings), {"sae": sae, "width": width})

    def _predict_from(self, layer: int, name: str, inputs: tuple[sparse.csr_array, ...], own: dict[str, Any]) -> None:
        split = self.split
        assert split is not None
        train, held_out = (
            RoutingData(x, self.selections.of_layer(layer, rows), self.tokens.group[rows])
            for x, rows in zip(inputs, (split.train, split.held_out), strict=True)
        )
        prediction = predict_routing(train, held_out, n_groups=self.tokens.n_groups, seed=self.settings.seed)
        estimate = prediction.estimate(resamples=_RESAMPLES, seed=self.settings.seed)
        self.routing_predicted.append({"layer": layer, **own, "inputs": name, "n_inputs": train.inputs.shape[1], **estimate})
        self.experts_predicted += [
            {"layer": layer, "expert": expert, **own, "inputs": name, "bits": float(bits)}
            for expert, bits in enumerate(prediction.expert_bits)
        ]

    def results(self) -> Iterator[Result]:
        """Yield the tables with their captions."""
        import pandas as pd

        if self.split is None:
            raise MoeProbeError(
                f"{self.run.path} has no SAEs of all tokens",
                "experts are matched with their features",
                f"moe-probe sae train {quoted(self.run.path)}",
            )
        settings, labels = self.settings, _feature_labels(self.run)
        params: dict[str, Any] = {
            "by": settings.by,
            "per_expert": settings.per_expert,
            "alpha": settings.alpha,
            "tokens_chosen_on": len(self.split.train),
            "tokens_scored_on": len(self.split.held_out),
        }
        tables = {name: pd.concat(parts, ignore_index=True) for name, parts in self.parts.items()}
        matches = tables["matches"]
        matches["label"] = [labels.get(key, "") for key in zip(matches["sae"], matches["feature"], strict=True)]
        tables["matches"] = matches[[*_FRONT, *(c for c in matches.columns if c not in _FRONT)]]
        tables["routing_predicted"] = pd.DataFrame(self.routing_predicted)
        tables["experts_predicted"] = pd.DataFrame(self.experts_predicted)
        tables["carriers"] = self.predictors.as_table({**labels, **_token_texts(self.run)})
        warnings = (
            () if self.loaded is not None else ("Router rows and decoder rows were not compared: no model was named.",)
        )
        for name, caption in _CAPTIONS.items():
            of_carriers = name == "carriers"
            yield Result(
                name,
                tables[name],
                params=params | {"resamples": _RESAMPLES} if of_carriers else params,
                seed=settings.seed,
                warnings=warnings if name == "matches" else (),
                citations=() if name == "feature_experts" else (*_SOURCES, *BOOTSTRAP, *AUROC) if of_carriers else _SOURCES,
                caption=caption,
            )


def _text_inputs(split: RoutingSplit) -> Iterator[tuple[str, sparse.csr_array]]:
    """Yield what may predict routing without an SAE, over all tokens of the trace."""
    from scipy import sparse

    tokens = split.tokens
    pairs, n_pairs = pair_codes(tokens, split.train)
    token = one_hot(tokens.token, int(tokens.token.max()) + 1)
    previous = one_hot(tokens.previous, int(tokens.previous.max()) + 1)
    yield "load alone", token[:, :1] * 0
    yield "topic", one_hot(tokens.topic, len(tokens.topics))
    yield "token", token
    yield "token and the one before", sparse.hstack([token, previous, one_hot(pairs, max(n_pairs, 1))], format="csr")


def _token_texts(run: RunDirectory) -> dict[tuple[str, int], str]:
    """Text of every token id, as the label of a unit that is a token."""
    return {(TOKENS, number): f"“{standing(text)}”" for number, text in run.token_strings().items()}


def _feature_labels(run: RunDirectory) -> Mapping[tuple[str, int], str]:
    """Labels of features, where they were made."""
    if "features" not in run.results:
        return {}
    table = run.results["features"].table
    return {(str(s), int(f)): str(text) for s, f, text in zip(table["sae"], table["feature"], table["label"], strict=True)}


#: Captions of the results, in their order.
_CAPTIONS = {
    "matches": (
        "Pairs were chosen on the SAE's training documents by mutual information and are scored on held-out ones. Score: "
        'AUROC of "the feature fires" for "the expert is chosen" where the pair was chosen; held-out score: the same on held-out '
        "documents (graded: of the activation). q: documents are the unit, Benjamini-Hochberg over the pairs of an SAE. Beyond "
        "random: log2 of the held-out bits over those of the expert's best direction in dictionaries of as many random "
        "directions, chosen in the same way. Its q tests whether the SAE does better than such dictionaries differ among "
        "themselves. Significant: both q pass. A match is an association: it does not show that the router reads the feature."
    ),
    "match_baselines": (
        "Held-out AUROC of other predictors of the expert, chosen by the same procedure: the best single token, pair of tokens, "
        "topic; the best feature when firings are those of other documents (shuffled); the best random direction (mean of "
        "several dictionaries); the feature whose decoder row points most along the router's row."
    ),
    "match_sets": (
        "Up to four of an expert's candidate features, ranked by an L1-penalised logistic regression and fitted on training "
        'documents: AUROC of the fitted score for "the expert is chosen" on held-out documents, beside that of the best single '
        "feature's activation. Intervals: 95 %, bootstrap over groups of documents."
    ),
    "routing_predicted": (
        "Multinomial logistic regression of a layer's chosen experts on sparse inputs, fitted on training documents. Recall: "
        "share of the chosen experts among the k likeliest, on held-out documents; bits: saved per selection over the base "
        "rate. 95 % intervals over documents. Published for gpt-oss-20b: 81 % recall from SAE latents of the residual stream, "
        "55 % from bigrams (RouterInterp); another model and other SAEs, so not comparable. The router is a linear map of its "
        "input: from the input itself recall would be 1."
    ),
    "experts_predicted": (
        "Bits that each kind of input saves per selection of an expert, over its load, on held-out documents; from the "
        "regressions of routing_predicted (Poisson log likelihood ratio)."
    ),
    "feature_experts": (
        "The three experts of the SAE's layer that most of a feature's tokens go through, on held-out documents, and the "
        "effective number of experts (2 to the entropy of the shares) beside that of all tokens. Features that fire on 20 "
        "tokens or more."
    ),
    "carriers": (
        "For every topic the best unit of each kind, chosen on training documents by the AUROC of documents and measured on "
        "held-out ones. AUROC of documents: by the share of their tokens on which the unit is active. AUROC of tokens: by the "
        "unit's activation, against the topic of their document. Intervals: 95 %; of documents by Newcombe's method, of tokens "
        "by a bootstrap of documents within topics; differences are paired. The bootstrap covers the truth in 90 to 94 % of "
        "cases up to 12 documents. A "
        "group or a set grows while a member adds 0.002 to the AUROC. Tokens: single token ids, and sets of up to 8 of them, "
        "chosen and measured in the same way. Log2 beyond words: how much more often a feature fires in the topic's documents "
        "than their tokens predict, with P(fires | token) learnt on training documents. There are many more features than "
        "experts to choose from: held-out documents account for that choice, but both halves come from the same corpus. "
        'Nothing is permuted here, and strata do not apply: they enter "feature only" by the test of the feature\'s topic.'
    ),
}
