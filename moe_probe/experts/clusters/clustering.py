"""Clusters of experts, documents and tokens by their routing, and their agreement with labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.results import Result
from moe_probe.experts.clusters.kmeans import Exchangeable, agreement, cluster_units, leading_components, stability
from moe_probe.experts.clusters.units import Units, document_units, expert_units, token_units, with_strata

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

_MAPPED = 600  # units of a kind that are laid out, at most: more would overlap in a picture
_CITATIONS = (
    "Rousseeuw 1987, silhouettes, DOI 10.1016/0377-0427(87)90125-7",
    "Vinh et al. 2010, adjusted mutual information, https://jmlr.org/papers/v11/vinh10a.html",
    "Hubert and Arabie 1985, adjusted Rand index, DOI 10.1007/BF01908075",
    "Rosenberg and Hirschberg 2007, V-measure, https://aclanthology.org/D07-1043",
    "McInnes et al. 2018, UMAP, arXiv:1802.03426",
)


class Clusters(NamedTuple):
    """Four results: ``clusters``, ``cluster_summary``, ``cluster_agreement`` and ``maps``."""

    clusters: Result
    summary: Result
    agreement: Result
    maps: Result


def cluster_routing(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace,
    *,
    label: str = "topic",
    others: tuple[str, ...] = (),
    max_tokens: int = 1500,
    maps: bool = True,
    seed: int = 0,
    strata: str | None = None,
) -> Clusters:
    """Cluster experts by topic profile, documents and tokens by their routing.

    Experts of all layers together: log2 lift over topics. Documents: square roots of usage shares of
    all layers. Tokens: which experts each chose, all layers (a sample of at most `max_tokens`).

    Parameters
    ----------
    trace : Trace
    label : str
        Label column of the profiles, compared with clusters.
    others : tuple of str
        Further label columns, compared with clusters.
    max_tokens : int
        Number of tokens that are clustered, at most.
    maps : bool
        Lay out units in the plane by UMAP.
    seed : int
        Seed of samples, k-means, permutations and UMAP.
    strata : str, optional
        Label column within which labels of documents and tokens are permuted over documents. It is itself permuted among
        all documents. Labels of experts are permuted among experts, to which strata do not apply.

    Returns
    -------
    Clusters
        ``clusters``: ``unit, layer, id, cluster``. ``cluster_summary``: ``unit, n, k, silhouette,
        silhouette_null_95, stability_ami``. ``cluster_agreement``: ``unit, label, ami, ami_null, ami_p, ari,
        ari_null, v_measure, v_null, n, permuted_within`` ("": all documents). ``maps``: ``unit, layer, id, x, y, label,
        cluster``.

    Raises
    ------
    MoeProbeError
        When there are fewer than two labels or fewer than four documents, or no such strata.
    """
    from threadpoolctl import threadpool_limits

    units = [expert_units(trace, label=label), document_units(trace, label=label, others=others, seed=seed)]
    if "routing" in trace.manifest.kept:
        units.append(token_units(trace, label=label, max_tokens=max_tokens, seed=seed))
    parts: dict[str, list[Any]] = {"clusters": [], "summary": [], "agreement": [], "maps": []}
    # hundreds of small k-means: threads inside them would wait for each other longer than they work
    with threadpool_limits(1), ThreadPoolExecutor(1) as aside:
        planes = [aside.submit(_plane, item, seed=seed) for item in units] if maps else []
        for item in units:
            _cluster(item if strata is None else with_strata(trace, item, strata), parts, seed=seed, strata=strata)
        for clusters, plane in zip(parts["clusters"], track(planes, "maps", unit="maps"), strict=False):
            positions = plane.result()
            if positions is not None:
                parts["maps"].append(positions.merge(clusters, on=["unit", "layer", "id"], validate="1:1"))
    parts["warnings"] = [warning for item in units for warning in item.warnings]
    return _results(parts, {"label": label, "others": list(others), "max_tokens": max_tokens, "strata": strata}, seed)


def _cluster(item: Units, parts: dict[str, list[Any]], *, seed: int, strata: str | None = None) -> None:
    """Cluster units of one kind, and append the rows of the tables to `parts`."""
    import pandas as pd

    partition = cluster_units(item.features, seed=seed)
    parts["summary"].append(
        {
            "unit": item.kind,
            "n": len(item.features),
            "k": partition.k,
            "silhouette": partition.silhouette,
            "silhouette_null_95": partition.null_95,
            "stability_ami": stability(item.features, partition.k, group=item.group, seed=seed),
        }
    )
    parts["clusters"].append(
        pd.DataFrame({"unit": item.kind, "layer": _layers(item), "id": item.number, "cluster": partition.cluster})
    )
    for name, values in item.labels.items():
        if len(set(values)) > 1:
            # a token's class and an expert's layer are its own: permuted one by one, not by document
            single = name in ("token class", "layer") or item.kind == "expert"
            group = np.arange(len(values)) if single else item.group
            within = None if name == strata else item.strata
            compared = agreement(partition.cluster, values, Exchangeable(group, within), seed=seed)
            parts["agreement"].append(
                {"unit": item.kind, "label": name, **vars(compared), "permuted_within": "" if within is None else strata}
            )


def _layers(item: Units) -> pd.Series:
    """List the layer of every unit; missing where a unit spans all layers."""
    import pandas as pd

    return pd.Series(item.layer, dtype="Int64").mask(item.layer < 0)


def _plane(item: Units, *, seed: int) -> pd.DataFrame | None:
    """Lay out (at most `_MAPPED`) units in the plane; None where there are too few."""
    import pandas as pd

    if len(item.features) <= 4:
        return None
    rows = np.sort(np.random.default_rng(seed).permutation(len(item.features))[:_MAPPED])
    x, y = _umap(item.features[rows], seed=seed).T
    label = next(iter(item.labels.values()))
    return pd.DataFrame(
        {
            "unit": item.kind,
            "layer": _layers(item).iloc[rows].reset_index(drop=True),
            "id": item.number[rows],
            "x": x,
            "y": y,
            "label": label[rows],
        }
    )


def _umap(features: np.ndarray, *, seed: int) -> np.ndarray:
    """Project features (n_units, n_features) to the plane, shape (n_units, 2). McInnes et al. 2018, arXiv:1802.03426."""
    import umap

    model = umap.UMAP(
        n_neighbors=min(15, len(features) - 1),
        min_dist=0.2,
        n_epochs=200,
        random_state=seed,
        n_jobs=1,  # a seed allows one thread only
        init="pca" if len(features) < 50 else "spectral",
    )
    return np.asarray(model.fit_transform(leading_components(features, seed)), dtype=np.float64)


def _results(parts: dict[str, list[Any]], params: dict[str, Any], seed: int) -> Clusters:
    import pandas as pd

    columns = ["unit", "layer", "id", "x", "y", "label", "cluster"]
    maps = pd.concat(parts["maps"], ignore_index=True) if parts["maps"] else pd.DataFrame(columns=columns)

    def result(name: str, table: pd.DataFrame, caption: str) -> Result:
        warnings = tuple(parts["warnings"])
        return Result(name, table, params=params, seed=seed, caption=caption, warnings=warnings, citations=_CITATIONS)

    within = (
        f" within each {params['strata']}. That label itself is permuted among all documents. Labels of experts are "
        "permuted among experts, to which strata do not apply."
        if params["strata"]
        else "."
    )
    return Clusters(
        result(
            "clusters",
            pd.concat(parts["clusters"], ignore_index=True),
            "Clusters of experts, documents and tokens by k-means; cluster 0 is the largest. Experts are described by log2 lift "
            "over topics, documents by square roots of usage shares, tokens by the experts that they chose.",
        ),
        result(
            "cluster_summary",
            pd.DataFrame(parts["summary"]),
            "Number of clusters of experts, documents and tokens, and their stability. One cluster means that no division has "
            "a better mean silhouette than the best of 19 data sets whose columns were permuted independently. Stability: "
            "adjusted mutual information between clusterings of random samples of 80 % of the groups.",
        ),
        result(
            "cluster_agreement",
            pd.DataFrame(parts["agreement"]),
            "Agreement of clusters with labels. Values above the null mean that clusters follow the label. The null is the mean "
            f"over labels permuted over groups of documents{within}",
        ),
        result(
            "maps",
            maps,
            "Units laid out in the plane by UMAP, so that similar ones are near. Use it to look, not for claims: distances "
            "between clusters and their sizes mean nothing.",
        ),
    )
