"""Clusters of experts, documents and tokens by how they are routed, and whether humans would cut them so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError, did_you_mean
from moe_probe.core.results import Result
from moe_probe.core.stats import group_usage, labelled_documents, topic_moments
from moe_probe.experts.clusters.kmeans import agreement, cluster_units, leading_components, stability
from moe_probe.experts.explain.classes import token_class
from moe_probe.experts.explain.tokens import LayerSelections, map_layers, sample_tokens

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

_MAPPED = 600  # units of a kind that are laid out: a picture of more is a blot
_FLOOR = 0.1  # an expert used less than this share of its even load has no profile to speak of
_CITATIONS = (
    "Rousseeuw 1987, silhouettes, DOI 10.1016/0377-0427(87)90125-7",
    "Vinh et al. 2010, adjusted mutual information, JMLR 11:2837",
    "Hubert and Arabie 1985, adjusted Rand index, DOI 10.1007/BF01908075",
    "Rosenberg and Hirschberg 2007, V-measure, ACL D07-1043",
    "McInnes et al. 2018, UMAP, arXiv:1802.03426",
)


class Units(NamedTuple):
    """Things to cluster: ``features`` (n_units, n_features), ``layer`` and ``number`` that name them, ``group``, ``labels``.

    ``strata`` (n_units,) holds the units' strata, where they are of documents and strata were asked for.
    """

    kind: str
    features: np.ndarray
    layer: np.ndarray
    number: np.ndarray
    group: np.ndarray
    labels: dict[str, np.ndarray]
    strata: np.ndarray | None = None


class Clusters(NamedTuple):
    """Three results: ``clusters``, ``cluster_summary`` and ``cluster_agreement``, and the ``maps``."""

    clusters: Result
    summary: Result
    agreement: Result
    maps: Result


def cluster_routing(
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
        For profiles, and to compare clusters with.
    others : tuple of str
        Further label columns to compare clusters with.
    max_tokens : int
    maps : bool
        Lay units out in the plane by UMAP.
    seed : int
    strata : str, optional
        Label within which labels of documents and tokens are permuted over documents. It is not compared within itself, and
        experts' labels are exchanged among experts, to which it does not apply.

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

    units = [expert_units(trace, label=label), document_units(trace, label=label, others=others)]
    if "routing" in trace.manifest.kept:
        units.append(token_units(trace, label=label, max_tokens=max_tokens, seed=seed))
    parts: dict[str, list[Any]] = {"clusters": [], "summary": [], "agreement": [], "maps": []}
    # hundreds of small k-means: threads inside them wait for each other longer than they work
    with threadpool_limits(1), ThreadPoolExecutor(1) as aside:
        planes = [aside.submit(_plane, item, seed=seed) for item in units] if maps else []
        for item in units:
            _cluster(item if strata is None else _stratified(trace, item, strata), parts, seed=seed, strata=strata)
        for found, plane in zip(parts["clusters"], planes, strict=False):
            placed = plane.result()
            if placed is not None:
                parts["maps"].append(placed.merge(found, on=["unit", "layer", "id"], validate="1:1"))
    return _results(parts, {"label": label, "others": list(others), "max_tokens": max_tokens, "strata": strata}, seed)


def expert_units(trace: Trace, *, label: str = "topic") -> Units:
    """Experts of all layers, by log2 lift for every topic (cut at -3 and 3); hardly used ones are left out."""
    groups = group_usage(trace.usage(), label=label)
    if len(groups.topics) < 2:
        raise MoeProbeError(
            f"all documents have the {label} '{groups.topics[0]}'",
            "profiles need something to differ over",
            "a corpus of two topics or more",
        )
    mean, _, _ = topic_moments(groups.shares, groups.topic, n_topics=len(groups.topics))
    base = mean.mean(0)
    used = base >= _FLOOR / np.bincount(groups.layer_index)[groups.layer_index]
    with np.errstate(divide="ignore"):
        profile = np.clip(np.log2(mean[:, used] / base[used]), -3, 3).T
    best = np.array(groups.topics, dtype=object)[profile.argmax(1)]
    return Units(
        "expert",
        profile,
        groups.layer[used],
        groups.expert[used],
        np.arange(int(used.sum())),
        {f"best {label}": best, "layer": groups.layer[used].astype(str)},
    )


def document_units(trace: Trace, *, label: str = "topic", others: tuple[str, ...] = ()) -> Units:
    """Documents, by square roots of their usage shares of all layers."""
    usage = trace.usage()
    keep, _, names = labelled_documents(usage.documents, label=label)
    rows = np.flatnonzero(keep & (usage.selections.sum((1, 2)) > 0))
    if len(rows) < 4:
        raise MoeProbeError(
            f"{len(rows)} labelled documents cannot be clustered", "clusters need several members", "a larger corpus"
        )
    counts = usage.selections[rows]
    shares = counts / np.maximum(counts.sum(2, keepdims=True), 1)
    features = np.concatenate([np.sqrt(shares[:, i, :n]) for i, n in enumerate(usage.num_experts)], axis=1)
    labels = {name: usage.documents[name].fillna("").astype(str).to_numpy(dtype=object)[rows] for name in (label, *others)}
    return Units("document", features, np.full(len(rows), -1), rows, names[rows], labels)


def token_units(trace: Trace, *, label: str = "topic", max_tokens: int = 1500, seed: int = 0) -> Units:
    """Tokens, by the experts that they chose in every layer (0 or 1 a column)."""
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=100 * max_tokens, seed=seed)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sample.row))[:max_tokens])
    place = np.full(len(sample.row), -1)
    place[chosen] = np.arange(len(chosen))

    def choices(item: LayerSelections) -> np.ndarray:
        use = place[item.token] >= 0
        picked = np.zeros((len(chosen), item.num_experts), dtype=np.float32)
        picked[place[item.token[use]], item.expert[use]] = 1
        return picked

    parts = list(map_layers(trace, sample, choices))
    topic = np.array(sample.topics, dtype=object)[sample.topic[sample.group[chosen]]]
    strings = trace.token_strings()
    kind = np.array([token_class(strings[int(v)]) for v in sample.vocabulary[sample.token[chosen]]], dtype=object)
    return Units(
        "token",
        np.concatenate(parts, axis=1),
        np.full(len(chosen), -1),
        sample.row[chosen],
        sample.group[chosen],
        {label: topic, "token class": kind},
    )


def _stratified(trace: Trace, item: Units, strata: str) -> Units:
    """The units with their documents' strata; experts have none."""
    if item.kind == "expert":
        return item
    documents = trace.documents
    if strata not in documents:
        raise MoeProbeError(
            f"documents have no column '{strata}' to stratify by",
            did_you_mean(strata, list(documents.columns)),
            "--strata with a label column of the corpus",
        )
    values = documents[strata].fillna("").astype(str).to_numpy(dtype=object)
    rows = item.number if item.kind == "document" else trace.tokens(["document"])["document"].to_numpy()[item.number]
    return item._replace(strata=values[rows])


def _cluster(item: Units, parts: dict[str, list[Any]], *, seed: int, strata: str | None = None) -> None:
    import pandas as pd

    found = cluster_units(item.features, seed=seed)
    parts["summary"].append(
        {
            "unit": item.kind,
            "n": len(item.features),
            "k": found.k,
            "silhouette": found.silhouette,
            "silhouette_null_95": found.null_95,
            "stability_ami": stability(item.features, found.k, group=item.group, seed=seed),
        }
    )
    parts["clusters"].append(
        pd.DataFrame({"unit": item.kind, "layer": _layers(item), "id": item.number, "cluster": found.cluster})
    )
    for name, values in item.labels.items():
        if len(set(values)) > 1:
            # a token's class and an expert's layer are its own: exchanged one by one, not by document
            single = name in ("token class", "layer") or item.kind == "expert"
            group = np.arange(len(values)) if single else item.group
            within = None if name == strata else item.strata
            compared = agreement(found.cluster, values, group=group, strata=within, seed=seed)
            parts["agreement"].append(
                {"unit": item.kind, "label": name, **vars(compared), "permuted_within": "" if within is None else strata}
            )


def _layers(item: Units) -> pd.Series:
    """Layer of every unit; missing where a unit spans all."""
    import pandas as pd

    return pd.Series(item.layer, dtype="Int64").mask(item.layer < 0)


def _plane(item: Units, *, seed: int) -> pd.DataFrame | None:
    """Places of (at most `_MAPPED`) units in the plane; None where there are too few to lay out."""
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
    import warnings

    import umap

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # a fixed seed means one thread; that is wanted
        model = umap.UMAP(
            n_neighbors=min(15, len(features) - 1),
            min_dist=0.2,
            n_epochs=200,
            random_state=seed,
            n_jobs=1,
            init="pca" if len(features) < 50 else "spectral",
        )
        return np.asarray(model.fit_transform(leading_components(features, seed)), dtype=np.float64)


def _results(parts: dict[str, list[Any]], params: dict[str, Any], seed: int) -> Clusters:
    import pandas as pd

    columns = ["unit", "layer", "id", "x", "y", "label", "cluster"]
    maps = pd.concat(parts["maps"], ignore_index=True) if parts["maps"] else pd.DataFrame(columns=columns)

    def result(name: str, table: pd.DataFrame, caption: str) -> Result:
        return Result(name, table, params=params, seed=seed, caption=caption, citations=_CITATIONS)

    return Clusters(
        result(
            "clusters",
            pd.concat(parts["clusters"], ignore_index=True),
            "k-means. Experts: log2 lift over topics; documents: square roots of usage shares; tokens: experts chosen.",
        ),
        result(
            "cluster_summary",
            pd.DataFrame(parts["summary"]),
            "Number of clusters: the best mean silhouette, if it exceeds that of 19 data sets whose columns were "
            "permuted independently, else 1. Stability: adjusted mutual information between clusterings of random "
            "samples of 80 % of the groups.",
        ),
        result(
            "cluster_agreement",
            pd.DataFrame(parts["agreement"]),
            "Agreement of clusters with labels, and its mean when labels are permuted over groups of documents"
            + (
                f" within each {params['strata']}; {params['strata']} itself is permuted among all documents. Labels of "
                "experts are exchanged among experts: strata do not apply."
                if params["strata"]
                else "."
            ),
        ),
        result(
            "maps",
            maps,
            "UMAP lays out units so that near ones stay near: for looking, never for a claim. Distances "
            "between clusters and their sizes mean nothing.",
        ),
    )
