"""Result tables as a run leaves them, drawn at random: for tests and benchmarks of what reads results.

Names, columns and types are those of real results; no number in them was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

_CLASSES = ("word start", "word inside", "number", "punctuation", "space", "code", "other script")
_KINDS = ("topics", "documents", "coactivation", "router", "weights")
_ORDERS = (
    ("alone", ("token", "previous token", "position", "topic")),
    ("token first", ("token", "previous token", "position", "topic")),
    ("topic first", ("topic", "position", "token", "previous token")),
    ("beyond token", ("previous token", "position", "topic", "word sense")),
)
_SAE = "layer_00/width_00064"
_CAPTION = "Planted: drawn at random, not measured."


def planted_results(
    trace: Trace,
    directory: str | Path,
    *,
    words: Sequence[str] = ("one", " two", " three"),
    width: int = 64,
    seed: int = 0,
) -> list[Result]:
    """Write the tables of a whole run, features included, for the layers, experts and topics of a trace.

    Parameters
    ----------
    trace : Trace
        Gives layers, experts, topics and documents; its routing is not read.
    directory : str or Path
        Where tables go, ``RUN/results``.
    words : sequence of str
        Tokens of all contexts and labels.
    width : int
        Features of each of two SAEs.
    seed : int

    Returns
    -------
    list of Result
    """
    from moe_probe.studies.verdicts import complete_verdicts, topic_verdicts

    rng = np.random.default_rng(seed)
    experts = np.array([(m.layer, e) for m in trace.layers for e in range(m.num_experts)])
    topics = sorted(trace.documents["topic"].unique())
    words = list(words)
    params: dict[str, dict[str, Any]] = {
        "expert_topics": {
            "label": "topic",
            "strata": None,
            "permutations": 99,
            "alpha": 0.05,
            "groups": len(trace.documents),
            "topics": len(topics),
            "halves": "drawn by seed",
            "model_p": 0.01,
        },
        "features": {"by": "topic", "finer": None, "good_score": 0.8, "good_hard_score": 0.7},
        "ablation": {"documents": 12, "tokens": 3000, "loss_nats": 2.5},
    }

    def named(tables: dict[str, pd.DataFrame]) -> dict[str, Result]:
        return {
            name: Result(
                name,
                table,
                params=params.get(name, {}),
                seed=seed,
                caption=_CAPTION,
                citations=("Mann and Whitney 1947, guessing power (AUROC), DOI 10.1214/aoms/1177730491",),
            )
            for name, table in tables.items()
        }

    results = named(_usage(rng, experts, topics, trace))
    verdicts = topic_verdicts(results["expert_topics"])
    results |= named(
        {
            **_pairs(rng, trace),
            **_units(rng, verdicts.table),
            **_features(rng, experts, topics, words, width),
            **_texts(rng, experts, topics, words, width),
            **_places(rng, experts, topics, trace),
        }
    )
    results["verdicts"] = complete_verdicts(
        verdicts, carriers=results["carriers"], features=results["features"], ablation=results["ablation"]
    )
    for result in results.values():
        result.save(directory)
    return list(results.values())


def _around(
    rng: np.random.Generator,
    value: np.ndarray,
    names: tuple[str, str, str],
    spread: float = 0.1,
) -> dict[str, np.ndarray]:
    """A value with an interval about it."""
    half = spread * rng.uniform(0.5, 1.5, len(value))
    return {names[0]: value, names[1]: value - half, names[2]: value + half}


def _usage(rng: np.random.Generator, experts: np.ndarray, topics: list[str], trace: Trace) -> dict[str, pd.DataFrame]:
    import pandas as pd

    size, layers = len(experts), [m.layer for m in trace.layers]

    def crossed(values: Sequence[str], name: str) -> pd.DataFrame:
        n = size * len(values)
        log2 = rng.normal(0, 0.4, n) + 1.5 * (rng.random(n) < 0.01)
        q = np.where(np.abs(log2) > 0.8, 1e-4, 0.4)
        return pd.DataFrame(
            {
                "layer": experts[:, 0].repeat(len(values)),
                "expert": experts[:, 1].repeat(len(values)),
                name: np.tile(np.array(values, dtype=object), size),
                "share": rng.uniform(0.02, 0.2, n),
                "lift": 2**log2,
                **_around(rng, log2, ("log2_lift", "ci_low", "ci_high")),
                "p_value": q / 2,
                "q_value": q,
                "replicated": log2 > 0.9,
                "significant": q < 0.05,
                "p_familywise": q,
                "auroc": rng.uniform(0.4, 0.9, n),
                "log2_lift_replication": log2 - 0.05,
                "detectable_log2_lift": 0.3,
                "n_groups": 24,
            }
        )

    load = rng.dirichlet(np.full(size // len(layers), 3.0), len(layers)).ravel()
    bits = {
        f"bits_{f}": rng.uniform(0, 1, size) for f in ("token", "previous_token", "position", "topic", "topic_given_token")
    }
    table = pd.DataFrame(
        {
            "layer": experts[:, 0],
            "expert": experts[:, 1],
            "load": load,
            "mean_gate_weight": 0.2,
            **bits,
            "explained_by": rng.choice(["token", "topic", "none"], size),
        }
    )
    n = len(layers)
    profile = pd.DataFrame(
        {
            "layer": layers,
            "entropy_bits": 3.0,
            "effective_experts": size / n * rng.uniform(0.6, 0.9, n),
            "load_cv": 0.3,
            "max_over_mean": 2.0,
            "dead_experts": 0,
            "mi_topic_bits": rng.uniform(0, 0.1, n),
            "mi_topic_null_bits": 0.01,
            "mi_topic_p": 0.01,
            "decode_accuracy": rng.uniform(0.2, 0.9, n),
            "decode_baseline": 0.1,
        }
    )
    explained = pd.DataFrame(
        [
            {
                "layer": layer,
                "order": order,
                "step": step,
                "factor": factor,
                "bits": value,
                "ci_low": value - 0.01,
                "ci_high": value + 0.01,
                "base_bits": 3.5,
            }
            for layer in layers
            for order, factors in _ORDERS
            for step, factor in enumerate(factors)
            for value in (float(rng.uniform(0, 1.5 / (step + 1))),)
        ]
    )
    return {
        "expert_topics": crossed(topics, "topic"),
        "expert_token_classes": crossed(_CLASSES, "token_class"),
        "experts": table,
        "layers": profile,
        "explained": explained,
    }


def _pairs(rng: np.random.Generator, trace: Trace) -> dict[str, pd.DataFrame]:
    import pandas as pd

    pairs = np.concatenate([[(m.layer, a, b) for a, b in combinations(range(m.num_experts), 2)] for m in trace.layers])
    both = pd.DataFrame({"layer": pairs[:, 0], "expert_a": pairs[:, 1], "expert_b": pairs[:, 2]})
    together = both.assign(tokens=rng.integers(1, 500, len(both)), lift=2 ** rng.normal(0, 0.7, len(both)))
    alike = pd.concat(
        [both.assign(kind=kind, similarity=rng.normal(0, 0.3, len(both))) for kind in _KINDS], ignore_index=True
    )
    return {"coactivation": together, "expert_similarity": alike}


def _units(rng: np.random.Generator, verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What carries each topic, and what happens without the unit of its verdict."""
    import pandas as pd

    topics, carriers, ablation = verdicts["topic"].tolist(), [], []
    for place, (topic, layer, expert) in enumerate(verdicts[["topic", "layer", "expert"]].itertuples(index=False)):
        for kind, source, members in (
            ("expert", f"layer {layer}", str(expert)),
            ("experts", f"layer {layer}", f"{expert}+0"),
            ("feature", _SAE, str(place)),
            ("features", _SAE, "1+2"),
            ("token", "tokens", "5"),
            ("tokens", "tokens", "5+7"),
        ):
            carriers.append(
                {"topic": topic, "kind": kind, "layer": layer, "source": source, "members": members, "label": topic}
            )
        for unit, members, sae in (
            (f"layer {layer} expert {expert}", str(expert), ""),
            (f"{_SAE} feature {place}", str(place), _SAE),
        ):
            ablation += [
                {
                    "layer": layer,
                    "unit": unit,
                    "topic": t,
                    "members": members,
                    "sae": sae,
                    "how": "mask",
                    "held_to": t == topic,
                    "control_nats": 0.001,
                    "confirmed": t == topic and place % 2 == 0,
                }
                for t in topics
            ]
    carried = pd.DataFrame(carriers)
    # topics may share a unit: it is knocked out once, and held to each of them
    knocked = pd.DataFrame(ablation).sort_values("held_to", kind="stable").drop_duplicates(["unit", "topic"], keep="last")
    knocked = knocked.sort_index().reset_index(drop=True)
    n = len(carried)
    single = carried["kind"].eq("expert").to_numpy()
    carried = carried.assign(
        **_around(rng, rng.uniform(0.6, 0.95, n), ("auroc_document", "document_low", "document_high"), 0.03),
        **_around(rng, rng.uniform(0.5, 0.7, n), ("auroc_token", "token_low", "token_high"), 0.02),
        **_around(
            rng,
            np.where(single, 0.0, rng.uniform(0, 0.2, n)),
            ("beyond_expert_document", "beyond_expert_document_low", "beyond_expert_document_high"),
            0.05,
        ),
        **_around(
            rng,
            rng.uniform(0.1, 0.3, n),
            ("beyond_token_document", "beyond_token_document_low", "beyond_token_document_high"),
            0.05,
        ),
        **_around(
            rng,
            rng.uniform(0.1, 0.2, n),
            ("beyond_tokens_document", "beyond_tokens_document_low", "beyond_tokens_document_high"),
            0.05,
        ),
        **_around(
            rng, rng.uniform(0.5, 1, n), ("log2_beyond_words", "log2_beyond_words_low", "log2_beyond_words_high"), 0.1
        ),
    )
    m = len(knocked)
    knocked = knocked.assign(
        **_around(rng, rng.normal(0.01, 0.01, m), ("delta_nats", "ci_low", "ci_high"), 0.005),
        **_around(rng, rng.normal(0.01, 0.01, m), ("beyond_control", "beyond_control_low", "beyond_control_high"), 0.005),
        **_around(rng, rng.normal(0.01, 0.01, m), ("beyond_others", "beyond_others_low", "beyond_others_high"), 0.005),
    )
    return {"carriers": carried, "ablation": knocked}


def _saes(experts: np.ndarray) -> list[tuple[int, str]]:
    return [(int(layer), f"layer_{int(layer):02d}/width_00064") for layer in np.unique(experts[:, 0])[:2]]


def _features(
    rng: np.random.Generator,
    experts: np.ndarray,
    topics: list[str],
    words: list[str],
    width: int,
) -> dict[str, pd.DataFrame]:
    import pandas as pd

    parts, quality, matches = [], [], []
    for layer, sae in _saes(experts):
        n = width
        topic = rng.choice(np.array([*topics, ""], dtype=object), n)
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "width": width,
                    "feature": np.arange(n),
                    "label": rng.choice(np.array(words, dtype=object), n),
                    "label_score": rng.uniform(0.5, 1, n),
                    "topic": topic,
                    "auroc_topic": rng.uniform(0.5, 1, n),
                    "density": rng.uniform(0, 0.1, n),
                    "top_tokens": " ".join(words),
                    "label_rule": rng.choice(["token", "word"], n),
                    "label_precision": 0.7,
                    "label_recall": 0.4,
                    "label_hard_score": 0.7,
                    "good": rng.random(n) < 0.4,
                    **_around(rng, rng.uniform(0, 2, n), ("topic_log2_lift", "topic_ci_low", "topic_ci_high")),
                    "topic_q": 0.01,
                    "nearest": 0,
                    "nearest_cosine": 0.3,
                    "max_activation": 1.0,
                    "sae": sae,
                }
            )
        )
        quality.append(
            {
                "sae": sae,
                "layer": layer,
                "width": width,
                "hook": "router_input",
                "fvu": 0.2,
                "l0": 16.0,
                "dead": 0.05,
                "dense": 0.01,
                "redundancy": 0.3,
                "ce_recovered": 0.9,
                "ce_recovered_low": 0.85,
                "ce_recovered_high": 0.95,
                "ce_recovered_mean": 0.9,
                "train_seconds": 3.0,
            }
        )
        for rank in (1, 2, 3):
            k = len(experts)
            matches.append(
                pd.DataFrame(
                    {
                        "layer": experts[:, 0],
                        "expert": experts[:, 1],
                        "width": width,
                        "feature": rng.integers(0, n, k),
                        "rank": rank,
                        "q_value": 0.01,
                        "heldout_score": rng.uniform(0.5, 0.9, k),
                        "heldout_bits": rng.uniform(0, 0.3, k),
                        "heldout_lift": 3.0,
                        "precision": 0.6,
                        "recall": 0.2,
                        "significant": rng.random(k) < 0.5,
                        "router_cosine": 0.1,
                        "sae": sae,
                        "sae_layer": layer,
                        "label": words[0],
                    }
                )
            )
    return {
        "features": pd.concat(parts, ignore_index=True),
        "sae_quality": pd.DataFrame(quality),
        "matches": pd.concat(matches, ignore_index=True),
    }


def _texts(
    rng: np.random.Generator,
    experts: np.ndarray,
    topics: list[str],
    words: list[str],
    width: int,
) -> dict[str, pd.DataFrame]:
    """Excerpts: of every expert two, of some features a few."""
    import pandas as pd

    def excerpt() -> tuple[list[str], list[float]]:
        strengths = np.where(rng.random(16) < 0.3, rng.random(16), 0.0)
        return [str(w) for w in rng.choice(np.array(words, dtype=object), 16)], strengths.tolist()

    contexts, cards = [], []
    for layer, expert in experts:
        for rank in (1, 2):
            tokens, weights = excerpt()
            contexts.append(
                {
                    "layer": int(layer),
                    "expert": int(expert),
                    "rank": rank,
                    "document": "document-0000",
                    "topic": topics[0],
                    "position": 1,
                    "weight": 0.5,
                    "tokens": tokens,
                    "weights": weights,
                }
            )
    for layer, sae in _saes(experts):
        for feature in range(min(width, 12)):
            for part in ("strongest", "weak", "silent"):
                tokens, activations = excerpt()
                chosen = ("topic", "best", "drawn")[feature % 3]
                cards.append(
                    {
                        "layer": layer,
                        "width": width,
                        "feature": feature,
                        "chosen": chosen,
                        "part": part,
                        "document": "document-0000",
                        "row": 0,
                        "tokens": tokens,
                        "activations": activations,
                        "sae": sae,
                    }
                )
    return {"expert_contexts": pd.DataFrame(contexts), "feature_cards": pd.DataFrame(cards)}


def _places(rng: np.random.Generator, experts: np.ndarray, topics: list[str], trace: Trace) -> dict[str, pd.DataFrame]:
    """Clusters and maps of experts, documents and, where routing was kept, tokens."""
    import pandas as pd

    documents = trace.documents["topic"].to_numpy(dtype=object)
    parts = [
        pd.DataFrame(
            {
                "unit": "expert",
                "layer": experts[:, 0],
                "id": experts[:, 1],
                "label": rng.choice(np.array(topics, dtype=object), len(experts)),
            }
        ),
        pd.DataFrame({"unit": "document", "layer": -1, "id": np.arange(len(documents)), "label": documents}),
    ]
    if "routing" in trace.manifest.kept:
        rows = np.sort(rng.permutation(trace.n_tokens)[:300])
        owner = trace.tokens(["document"])["document"].to_numpy()[rows]
        parts.append(pd.DataFrame({"unit": "token", "layer": -1, "id": rows, "label": documents[owner]}))
    maps = pd.concat(parts, ignore_index=True)
    maps = maps.assign(
        layer=maps["layer"].where(maps["layer"] >= 0).astype("Int64"),
        x=rng.normal(size=len(maps)),
        y=rng.normal(size=len(maps)),
        cluster=0,
    )
    units = list(dict.fromkeys(maps["unit"]))
    summary = pd.DataFrame(
        {
            "unit": units,
            "n": [int((maps["unit"] == u).sum()) for u in units],
            "k": 3,
            "silhouette": 0.3,
            "silhouette_null_95": 0.1,
            "stability_ami": np.linspace(0.4, 0.9, len(units)),
        }
    )
    agreed = pd.DataFrame(
        {
            "unit": units,
            "label": "topic",
            "ami": 0.2,
            "ami_null": 0.0,
            "ami_p": 0.01,
            "ari": 0.1,
            "ari_null": 0.0,
            "v_measure": 0.2,
            "v_null": 0.01,
            "n": summary["n"],
        }
    )
    return {
        "clusters": maps[["unit", "layer", "id", "cluster"]],
        "maps": maps,
        "cluster_summary": summary,
        "cluster_agreement": agreed,
    }
