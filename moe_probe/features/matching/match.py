"""Experts against the features of a run's SAEs: matches, predictions, and who carries each topic best."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.pieces import standing
from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.core.stats.bootstrap import AUROC, BOOTSTRAP
from moe_probe.core.text import figure
from moe_probe.features.run_saes import RunSaes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.features.matching.counts import Scores
    from moe_probe.features.matching.pairs import Halves
    from moe_probe.features.run_saes import OpenSae
    from moe_probe.models import LoadedModel
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import Sae

_SOURCES = (
    "Mann and Whitney 1947, DOI 10.1214/aoms/1177730491",
    "Benjamini and Hochberg 1995, DOI 10.1111/j.2517-6161.1995.tb02031.x",
    "Jonker and Volgenant 1987, DOI 10.1007/BF02278710",
    "Lasy, Cai and Ayonrinde 2026 (RouterInterp), recall of routing from SAE latents",
)
_CARRIER_SOURCES = (*_SOURCES, *BOOTSTRAP, *AUROC)
_RESAMPLES = 500


def match(
    run: RunDirectory,
    *,
    by: str = "topic",
    per_expert: int = 8,
    alpha: float = 0.05,
    randoms: int = 3,
    loaded: LoadedModel | None = None,
    seed: int = 0,
    saes: RunSaes | None = None,
    say: Say = print,
) -> tuple[Result, ...]:
    """Hold experts and features of all SAEs of a run against each other.

    Parameters
    ----------
    by : str
        Label whose carriers are compared.
    per_expert : int
        Features kept of every expert and SAE.
    randoms : int
        Dictionaries of random directions that each SAE is compared with; two or more.
    loaded : LoadedModel, optional
        For the directions of its routers' rows.

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
    import pandas as pd

    from moe_probe.features.matching.feature_experts import experts_through
    from moe_probe.features.matching.pairs import Halves, match_features, rival_scores
    from moe_probe.features.matching.sets import feature_sets
    from moe_probe.features.matching.signals import read_choices, read_tokens
    from moe_probe.features.matching.topic_predictors import Carriers

    choices, tokens = read_choices(run), read_tokens(run, label=by)
    saes = saes or RunSaes(run)
    halves: Halves | None = None
    matches: list[pd.DataFrame] = []
    baselines: list[pd.DataFrame] = []
    sets: list[pd.DataFrame] = []
    through: list[pd.DataFrame] = []
    predicted: list[dict[str, Any]] = []
    by_expert: list[dict[str, Any]] = []
    rivals: Any = None
    for item in track(saes, "match", unit="SAEs"):
        if item.sae.config.experts is not None:
            say(f"{item.name}: an SAE of some experts' tokens, not matched")
            continue
        started = time.monotonic()
        first, second = saes.firings(item)
        if halves is None:
            halves = Halves(choices, tokens, first.rows, second.rows)
            rivals, carriers = rival_scores(halves), Carriers(choices, tokens, first.rows, second.rows, seed=seed)
        elif not (_same(halves.train, first.rows) and _same(halves.held_out, second.rows)):
            raise MoeProbeError(
                f"{item.name} was trained with other documents held out",
                "matches would not be comparable",
                "moe-probe sae train --force with one seed",
            )
        nulls, blind = _random_scores(halves, item, first, n=randoms, seed=seed)
        found = match_features(
            halves,
            first,
            second,
            rivals=rivals,
            nulls=nulls,
            cosines=_cosines(item.sae, loaded, choices),
            per_expert=per_expert,
            alpha=alpha,
        )
        named = {"sae": item.name, "width": item.sae.config.d_sae, "sae_layer": item.sae.config.layer}
        matches.append(found.matches.assign(**named))
        baselines.append(found.baselines.assign(**named))
        sets.append(feature_sets(halves, first, second, found.pairs, layer=item.sae.config.layer, seed=seed).assign(**named))
        layer_rows, expert_rows = _predictions(
            halves,
            item.sae,
            item.name,
            first,
            second,
            blind,
            known=bool([p for p in predicted if p["layer"] == item.sae.config.layer]),
            seed=seed,
        )
        predicted += layer_rows
        by_expert += expert_rows
        through.append(
            experts_through(choices.of_layer(item.sae.config.layer)[halves.held_out], second.matrix).assign(
                sae=item.name, width=item.sae.config.d_sae, layer=item.sae.config.layer
            )
        )
        carriers.add_features(item.name, item.sae.config.layer, first, second)
        say(f"{item.name}: {_matched(found.matches)} ({time.monotonic() - started:.1f} s)")
    if halves is None:
        raise MoeProbeError(
            f"{run.path} has no SAEs of all tokens",
            "experts are matched with their features",
            f"moe-probe sae train {run.path}",
        )
    labels = _labels(run)
    warnings = () if loaded is not None else ("Router rows and decoder rows were not compared: no model was named.",)
    table = pd.concat(matches, ignore_index=True)
    table["label"] = [labels.get(key, "") for key in zip(table["sae"], table["feature"], strict=True)]
    params = {
        "by": by,
        "per_expert": per_expert,
        "alpha": alpha,
        "tokens_chosen_on": len(halves.train),
        "tokens_scored_on": len(halves.held_out),
    }
    return (
        Result(
            "matches", _ordered(table), params=params, seed=seed, warnings=warnings, citations=_SOURCES, caption=_MATCHES
        ),
        Result(
            "match_baselines",
            pd.concat(baselines, ignore_index=True),
            params=params,
            seed=seed,
            citations=_SOURCES,
            caption=_BASELINES,
        ),
        Result(
            "match_sets", pd.concat(sets, ignore_index=True), params=params, seed=seed, citations=_SOURCES, caption=_SETS
        ),
        Result(
            "routing_predicted", pd.DataFrame(predicted), params=params, seed=seed, citations=_SOURCES, caption=_PREDICTED
        ),
        Result(
            "experts_predicted", pd.DataFrame(by_expert), params=params, seed=seed, citations=_SOURCES, caption=_BY_EXPERT
        ),
        Result("feature_experts", pd.concat(through, ignore_index=True), params=params, seed=seed, caption=_THROUGH),
        Result(
            "carriers",
            carriers.table({**labels, **_token_texts(run)}),
            params=params | {"resamples": _RESAMPLES},
            seed=seed,
            citations=_CARRIER_SOURCES,
            caption=_CARRIERS,
        ),
    )


_MATCHES = (
    "Pairs were chosen on the SAE's training documents by mutual information and are scored on held-out ones. Score: AUROC of "
    '"the feature fires" for "the expert is chosen" where it was chosen; held-out score the same on held-out documents '
    "(graded: of the activation). q: documents are the unit, Benjamini-Hochberg over the pairs of an SAE. Beyond random: "
    "log2 of the held-out bits over those of the expert's best direction in dictionaries of as many random directions, chosen "
    "in the same way; its q asks whether the SAE does better than such dictionaries differ among themselves. Significant: "
    "both q pass. A match is an association: it does not say that the router reads the feature."
)
_BASELINES = (
    "Held-out AUROC of what else could tell the expert, chosen by the same procedure: the best single token, pair of "
    "tokens, "
    "topic; the best feature when firings are those of other documents (shuffled); the best random direction (mean of several "
    "dictionaries); the feature whose decoder row points most along the router's row."
)
_SETS = (
    "Up to four of an expert's candidate features, ranked by an L1-penalised logistic regression and fitted on training "
    'documents; AUROC of the fitted score for "the expert is chosen" on held-out documents, beside that of the best '
    "single "
    "feature's activation; intervals 95 %, bootstrap over groups of documents."
)
_PREDICTED = (
    "Multinomial logistic regression of a layer's chosen experts on sparse inputs, fitted on training documents. Recall: "
    "share "
    "of the chosen experts among the k likeliest, on held-out documents; bits: saved per selection over the base rate. 95 % "
    "intervals over documents. Published for gpt-oss-20b: 81 % recall from SAE latents of the residual stream, 55 % from "
    "bigrams (RouterInterp); other model, other SAEs, so no like for like. The router is a linear map of its input: with "
    "the "
    "input itself recall would be 1."
)
_BY_EXPERT = (
    "Bits that each kind of input saves per selection of an expert, over its load, on held-out documents; from the "
    "regressions "
    "of routing_predicted (Poisson log likelihood ratio)."
)
_THROUGH = (
    "The three experts of the SAE's layer that most of a feature's tokens go through, on held-out documents, and the effective "
    "number of experts (2 to the entropy of the shares) beside that of all tokens. Features firing on 20 tokens or more."
)
_CARRIERS = (
    "For every topic the best unit of each kind, chosen on training documents by the AUROC of documents, measured on "
    "held-out "
    "ones: documents by the share of their tokens on which the unit is active, tokens by the unit's activation against the "
    "topic of their document. Intervals: 95 %; of documents by Newcombe's method, of tokens by a bootstrap of documents within "
    "topics (which holds the truth in 90 to 94 % of cases up to 12 documents); differences are paired. A group or a set "
    "grows while a member adds 0.002 to the AUROC. Tokens: single token ids, and sets of up to 8 of them, chosen and measured "
    "in the same way. Log2 beyond words: how much more often a feature fires in the topic's documents than their tokens "
    "predict, P(fires | token) being learnt on training documents. There are many more features than experts to choose from; "
    "held-out documents pay for that choice, but the same corpus wrote both halves. Nothing is permuted here, and strata do not "
    'apply: they enter "feature only" by the test of the feature\'s topic.'
)


def _random_scores(
    halves: Halves,
    item: OpenSae,
    train: Firings,
    *,
    n: int,
    seed: int,
) -> tuple[list[Scores], tuple[Firings, Firings]]:
    """Scores of every expert's best direction in random dictionaries as sparse as the SAE, and the firings of the first."""
    from moe_probe.features.matching.pairs import best_of_each
    from moe_probe.features.matching.signals import fired, random_dictionary

    scores: list[Scores] = []
    for i in range(n):
        null = random_dictionary(item.sae, l0=train.matrix.nnz / max(len(train.rows), 1), seed=seed + 7919 * i)
        blind = fired(null, item.train), fired(null, item.held_out)
        scores.append(best_of_each(halves, blind[0].matrix, blind[1].matrix))
        if i == 0:
            first = blind
    return scores, first


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    import numpy as np

    return np.array_equal(first, second)


def _matched(table: pd.DataFrame) -> str:
    best = table[table["rank"] == 1]
    return (
        f"{int(best['significant'].sum())} of {len(best)} experts have a feature that tells them beyond random "
        f"directions, "
        f"median AUROC {figure(best['heldout_score'].median(), '.3f', 'unknown')}"
    )


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    front = ["layer", "expert", "width", "feature", "score", "q_value", "heldout_score", "rank"]
    return table[[*front, *(c for c in table.columns if c not in front)]]


def _predictions(
    halves: Halves,
    sae: Sae,
    name: str,
    train: Firings,
    held_out: Firings,
    null: tuple[Firings, Firings],
    *,
    known: bool,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predict the SAE's own layer from its features, from random directions, and once a layer from what else there is."""
    from scipy import sparse

    from moe_probe.features.matching.prediction import predict
    from moe_probe.features.matching.signals import one_hot, pair_codes

    layer, tokens = sae.config.layer, halves.tokens
    chosen = halves.choices.of_layer(layer)
    pairs, n_pairs = pair_codes(tokens, halves.train)
    token = one_hot(tokens.token, int(tokens.token.max()) + 1)
    previous = one_hot(tokens.previous, int(tokens.previous.max()) + 1)
    bigram = sparse.hstack([token, previous, one_hot(pairs, max(n_pairs, 1))], format="csr")
    inputs: dict[str, tuple[Any, Any]] = {
        "features": (train.matrix, held_out.matrix),
        "random directions": (null[0].matrix, null[1].matrix),
    }
    if not known:
        inputs |= {
            key: (values[halves.train], values[halves.held_out])
            for key, values in (
                ("load alone", token[:, :1] * 0),
                ("topic", one_hot(tokens.topic, len(tokens.topics))),
                ("token", token),
                ("token and the one before", bigram),
            )
        }
    rows, experts = [], []
    for key, (x, held) in inputs.items():
        found = predict(
            x,
            held,
            chosen[halves.train],
            chosen[halves.held_out],
            group=tokens.group[halves.train],
            group_held_out=tokens.group[halves.held_out],
            n_groups=tokens.n_groups,
            seed=seed,
        )
        own = name if key in ("features", "random directions") else ""
        rows.append(
            {
                "layer": layer,
                "sae": own,
                "width": sae.config.d_sae if own else 0,
                "inputs": key,
                "n_inputs": x.shape[1],
                **found.estimate(resamples=_RESAMPLES, seed=seed),
            }
        )
        experts += [
            {"layer": layer, "expert": e, "sae": own, "width": rows[-1]["width"], "inputs": key, "bits": float(bits)}
            for e, bits in enumerate(found.expert_bits)
        ]
    return rows, experts


def _cosines(sae: Sae, loaded: LoadedModel | None, choices: Any) -> np.ndarray | None:
    """Cosines of router rows and decoder rows, for experts of the SAE's own layer where it reads the router's input."""
    import numpy as np
    import torch

    if loaded is None or sae.config.hook != "router_input":
        return None
    rows = next(
        (
            p
            for site in loaded.sites
            if site.info.layer == sae.config.layer and site.router is not None
            for p in site.router.parameters()
            if p.dim() == 2 and p.shape == (site.info.num_experts, sae.config.d_in)
        ),
        None,
    )
    if rows is None:
        return None
    with torch.no_grad():
        unit = torch.nn.functional.normalize(rows.float().cpu(), dim=1) @ torch.nn.functional.normalize(sae.W_dec, dim=1).T
    out = np.full((len(choices.layer), sae.config.d_sae), np.nan, dtype=np.float32)
    out[choices.layer == sae.config.layer] = unit.numpy()
    return out


def _token_texts(trace: Trace) -> dict[tuple[str, int], str]:
    """Text of every token id, as the label of a unit that is a token."""
    from moe_probe.features.matching.topic_predictors import TOKENS

    return {(TOKENS, number): f"“{standing(text)}”" for number, text in trace.token_strings().items()}


def _labels(run: RunDirectory) -> Mapping[tuple[str, int], str]:
    """Labels of features, where they were made."""
    if "features" not in run.results:
        return {}
    table = run.results["features"].table
    return {(str(s), int(f)): str(text) for s, f, text in zip(table["sae"], table["feature"], table["label"], strict=True)}
