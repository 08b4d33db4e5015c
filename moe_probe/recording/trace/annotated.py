"""A trace as AnnData: the one format that scanpy, squidpy and their relatives share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import UsageError
from moe_probe.core.extras import need_extra
from moe_probe.core.routing import dropped_id

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from moe_probe.recording.trace.reader import Trace


def to_anndata(trace: Trace, *, of: str, layer: int | None) -> AnnData:
    """As `Trace.to_anndata`."""
    need_extra("anndata", "AnnData objects")
    from anndata import AnnData

    if of not in ("documents", "tokens"):
        raise UsageError(f"of='{of}' is not known", "rows are documents or tokens", "of='documents'")
    places = list(range(len(trace.layers))) if layer is None else [trace.place(layer)]
    counts, mass, obs = (_documents if of == "documents" else _tokens)(trace, places)
    made = AnnData(X=counts, obs=obs, var=_experts(trace, places))
    if mass is not None:
        made.layers["gate_mass" if of == "documents" else "weights"] = mass
    model, corpus = trace.manifest.model, trace.manifest.corpus
    made.uns["moe_probe"] = {
        "of": of,
        "layers": [trace.layers[p].layer for p in places],
        "top_k": [trace.layers[p].top_k for p in places],
        "model": model.id,
        "revision": model.revision or "",
        "architecture": model.architecture,
        "fingerprint": model.fingerprint,
        "corpus": corpus.name,
        "corpus_hash": corpus.hash,
        "seed": trace.manifest.seed,
    }
    return made


def _experts(trace: Trace, places: list[int]) -> pd.DataFrame:
    """A row per column of the matrix."""
    import pandas as pd

    rows = [(trace.layers[p].layer, e) for p in places for e in range(trace.layers[p].num_experts)]
    names = pd.Index([f"L{layer:02d}E{expert:03d}" for layer, expert in rows], dtype=object)
    return pd.DataFrame(rows, columns=["layer", "expert"], index=names)


def _documents(trace: Trace, places: list[int]) -> tuple[sparse.csr_matrix, sparse.csr_matrix | None, pd.DataFrame]:
    usage = trace.usage()

    def wide(counts: np.ndarray) -> sparse.csr_matrix:
        from scipy import sparse

        parts = [counts[:, p, : trace.layers[p].num_experts] for p in places]
        return sparse.csr_matrix(np.concatenate(parts, axis=1).astype(np.float32))

    obs = _labels(trace.documents.drop(columns="document"))
    obs.index = _unique(trace.documents["document"])
    return wide(usage.selections), None if usage.gate_mass is None else wide(usage.gate_mass), obs


def _tokens(trace: Trace, places: list[int]) -> tuple[sparse.csr_matrix, sparse.csr_matrix | None, pd.DataFrame]:
    import pandas as pd
    from scipy import sparse

    first = np.concatenate([[0], np.cumsum([trace.layers[p].num_experts for p in places])])
    chosen: list[Any] = []
    weighed: list[Any] = []
    for chunk in trace.iter_routing([trace.layers[p].layer for p in places]):
        plain = ~chunk.special
        experts = chunk.experts[plain]
        token, place, slot = np.nonzero(experts != dropped_id(experts.dtype))
        column = first[place] + experts[token, place, slot]
        shape = (len(experts), int(first[-1]))
        chosen.append(sparse.csr_matrix((np.ones(len(token), dtype=np.float32), (token, column)), shape=shape))
        if chunk.weights is not None:
            values = chunk.weights[plain][token, place, slot].astype(np.float32)
            weighed.append(sparse.csr_matrix((values, (token, column)), shape=shape))
    tokens = trace.tokens(["document", "position", "token_id", "token", "special"])
    tokens = tokens[~tokens["special"]].drop(columns="special")
    documents = trace.documents.drop(columns="n_tokens").iloc[tokens["document"].to_numpy()]
    columns = {str(name): documents[name].to_numpy() for name in documents.columns}
    columns |= {name: tokens[name].to_numpy() for name in ("position", "token_id", "token")}
    obs = _labels(pd.DataFrame(columns))
    obs.index = pd.Index([str(row) for row in tokens.index], dtype=object)  # the trace's row of the token
    return sparse.vstack(chosen, format="csr"), sparse.vstack(weighed, format="csr") if weighed else None, obs


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


def _unique(names: pd.Series) -> pd.Index:
    """Names as an index without repetition: two documents may bear one name."""
    import pandas as pd

    repeated = names.duplicated(keep=False)
    return pd.Index(
        [f"{name}#{row}" if twice else str(name) for row, (name, twice) in enumerate(zip(names, repeated, strict=True))],
        dtype=object,
    )
