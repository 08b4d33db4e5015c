"""Experts and features of one call as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.run_tables import RunTables

#: Shares of a corpus below this many tokens are taken for this many: a feature never seen has no infinite lift.
_HALF = 0.5


def expert_table(call: Call, tables: RunTables) -> pd.DataFrame:
    """List the experts that a call used, layer by layer, the most used first.

    Parameters
    ----------
    call : Call
    tables : RunTables

    Returns
    -------
    pandas.DataFrame
        ``layer, expert, tokens`` (text tokens that chose it), ``share`` (of all text tokens), ``corpus_share`` (the same over
        the run's corpus), ``gate`` (mean gate weight where it was chosen), and ``topic, lift, replicated, explained_by`` of
        the run.
    """
    import pandas as pd

    text = call.text
    rows: list[dict[str, Any]] = []
    for i, layer in enumerate(call.layers):
        ids, weights = call.experts[text, i].ravel(), call.weights[text, i].ravel()
        counts = np.bincount(ids[ids >= 0])
        mass = np.bincount(ids[ids >= 0], weights=weights[ids >= 0])
        used = np.flatnonzero(counts)
        for expert in used[np.argsort(-counts[used], kind="stable")]:
            rows.append(
                {
                    "layer": layer,
                    "expert": int(expert),
                    "tokens": int(counts[expert]),
                    "share": counts[expert] / len(text),
                    "corpus_share": tables.corpus_share[i, expert],
                    "gate": mass[expert] / counts[expert],
                }
            )
    columns = ["layer", "expert", "tokens", "share", "corpus_share", "gate"]
    return pd.DataFrame(rows, columns=columns).join(tables.experts, on=["layer", "expert"])


def feature_table(call: Call, tables: RunTables, sae: str, width: int) -> pd.DataFrame:
    """List the features of one SAE that fire in a call.

    Parameters
    ----------
    call : Call
    tables : RunTables
    sae : str
        Its folder below RUN/sae.
    width : int
        Its latents.

    Returns
    -------
    pandas.DataFrame
        ``sae, feature, tokens`` (text tokens on which it fires), ``share`` (of all text tokens), ``max_activation,
        mean_activation`` (where it fires), ``relative`` (largest activation over the largest of the run's held-out
        documents), ``label, label_score`` (NaN: the label was not scored), ``good, topic, density`` of the run, and
        ``excess``, by which rows are sorted: ``share * log2(share / density)``, how much more of the text than of the corpus
        it fires on. Without labels the density is not known, and rows are sorted by summed activation.
    """
    import pandas as pd

    latents = call.latents[sae]
    n = max(len(call.text), 1)
    features, inverse = np.unique(latents.feature, return_inverse=True)
    tokens = np.bincount(inverse, minlength=len(features))
    largest = np.zeros(len(features), dtype=np.float64)
    np.maximum.at(largest, inverse, latents.value)
    total = np.bincount(inverse, weights=latents.value, minlength=len(features))
    out = pd.DataFrame(
        {
            "sae": sae,
            "feature": features.astype(np.int64),
            "tokens": tokens,
            "share": tokens / n,
            "max_activation": largest,
            "mean_activation": total / np.maximum(tokens, 1),
        }
    )
    out = out.join(tables.features(sae, width).rename(columns={"max_activation": "corpus_max"}), on="feature")
    out["relative"] = out["max_activation"] / out["corpus_max"].where(out["corpus_max"] > 0)
    floor = _HALF / max(tables.run.n_tokens, 1)
    out["excess"] = out["share"] * np.log2(out["share"] / out["density"].clip(lower=floor))
    key = out["excess"].fillna(-np.inf)
    order = np.lexsort((out["feature"], -total, -key))
    return out.iloc[order].drop(columns="corpus_max").reset_index(drop=True)
