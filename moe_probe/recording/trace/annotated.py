"""Routing as AnnData: the one format that scanpy, squidpy and their relatives share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.extras import need_extra
from moe_probe.core.routing import dropped_id

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from moe_probe.core.routing import Usage
    from moe_probe.core.schema import Manifest
    from moe_probe.recording.trace.chunks import RoutingChunk


def documents_anndata(manifest: Manifest, usage: Usage, layers: Sequence[int]) -> AnnData:
    """Build documents x experts: selections, and gate mass where it is known.

    Parameters
    ----------
    manifest : Manifest
        Of the trace.
    usage : Usage
        Its counts per document, layer and expert.
    layers : sequence of int
        Positions of the layers on the layer axis.

    Returns
    -------
    anndata.AnnData
        As `Trace.to_anndata` describes it.
    """
    need_extra("anndata", "AnnData objects")
    import pandas as pd
    from scipy import sparse

    kept = np.concatenate([np.arange(usage.columns[i].start, usage.columns[i].stop) for i in layers])
    number = np.full(int(usage.num_experts.sum()), -1)
    number[kept] = np.arange(len(kept))

    def matrix(measure: str) -> sparse.csr_matrix:
        shape = (len(usage.documents), len(kept))
        out = sparse.csr_matrix(shape, dtype=np.float32)
        for document, column, value in usage.pieces(measure):
            use = number[column] >= 0
            cells = (document[use], number[column[use]])
            out = out + sparse.csr_matrix((value[use].astype(np.float32), cells), shape=shape)
        return out

    obs = _labels(usage.documents.drop(columns="document"))
    names = usage.documents["document"]
    repeated = names.duplicated(keep=False)  # two documents may have one name
    obs.index = pd.Index(
        [f"{name}#{row}" if twice else str(name) for row, (name, twice) in enumerate(zip(names, repeated, strict=True))],
        dtype=object,
    )
    layered = {"gate_mass": matrix("gate_mass")} if usage.has_gate_mass else {}
    return _anndata(manifest, layers, matrix("selections"), obs, layered)


def tokens_anndata(
    manifest: Manifest, documents: pd.DataFrame, tokens: pd.DataFrame, routing: Iterable[RoutingChunk], layers: Sequence[int]
) -> AnnData:
    """Build tokens x experts: 1 for a selected expert, and its gate weight where it is known.

    Parameters
    ----------
    manifest : Manifest
        Of the trace.
    documents, tokens : pandas.DataFrame
        Its tables; special tokens are left out of the result.
    routing : iterable of RoutingChunk
        Routing of the chosen layers, all tokens in order.
    layers : sequence of int
        Positions of the chosen layers on the layer axis of the trace.

    Returns
    -------
    anndata.AnnData
        As `Trace.to_anndata` describes it.
    """
    need_extra("anndata", "AnnData objects")
    import pandas as pd
    from scipy import sparse

    first = np.concatenate([[0], np.cumsum([manifest.layers[i].num_experts for i in layers])])
    selected: list[Any] = []
    weighted: list[Any] = []
    for chunk in routing:
        experts = chunk.experts[~chunk.special]
        token, layer, slot = np.nonzero(experts != dropped_id(experts.dtype))
        column = first[layer] + experts[token, layer, slot]
        shape = (len(experts), int(first[-1]))
        selected.append(sparse.csr_matrix((np.ones(len(token), dtype=np.float32), (token, column)), shape=shape))
        if chunk.weights is not None:
            values = chunk.weights[~chunk.special][token, layer, slot].astype(np.float32)
            weighted.append(sparse.csr_matrix((values, (token, column)), shape=shape))
    tokens = tokens[~tokens["special"]].drop(columns="special")
    labels = documents.drop(columns="n_tokens").iloc[tokens["document"].to_numpy()]
    columns = {str(name): labels[name].to_numpy() for name in labels.columns}
    columns |= {name: tokens[name].to_numpy() for name in ("position", "token_id", "token")}
    obs = _labels(pd.DataFrame(columns))
    obs.index = pd.Index([str(row) for row in tokens.index], dtype=object)  # the trace's row of the token
    layered = {"weights": sparse.vstack(weighted, format="csr")} if weighted else {}
    return _anndata(manifest, layers, sparse.vstack(selected, format="csr"), obs, layered)


def _anndata(
    manifest: Manifest,
    layers: Sequence[int],
    counts: sparse.csr_matrix,
    obs: pd.DataFrame,
    layered: dict[str, sparse.csr_matrix],
) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    chosen = [manifest.layers[i] for i in layers]
    rows = [(layer.layer, expert) for layer in chosen for expert in range(layer.num_experts)]
    names = pd.Index([f"L{layer:02d}E{expert:03d}" for layer, expert in rows], dtype=object)
    data = AnnData(X=counts, obs=obs, var=pd.DataFrame(rows, columns=["layer", "expert"], index=names), layers=layered)
    data.uns["moe_probe"] = {
        "of": "tokens" if "token" in obs else "documents",
        "layers": [layer.layer for layer in chosen],
        "top_k": [layer.top_k for layer in chosen],
        "model": manifest.model.id,
        "revision": manifest.model.revision or "",
        "architecture": manifest.model.architecture,
        "fingerprint": manifest.model.fingerprint,
        "corpus": manifest.corpus.name,
        "corpus_hash": manifest.corpus.hash,
        "seed": manifest.seed,
    }
    return data


def _labels(table: pd.DataFrame) -> pd.DataFrame:
    """Words as categories, which every version of anndata writes; a missing label stays missing."""
    import pandas as pd

    def column(values: pd.Series) -> Any:
        if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            return values.to_numpy()
        plain = values.astype(object).where(values.notna(), None)
        words = sorted({str(v) for v in plain if v is not None})
        return pd.Categorical([None if v is None else str(v) for v in plain], categories=pd.Index(words, dtype=object))

    return pd.DataFrame({str(name): column(table[name]) for name in table.columns})
