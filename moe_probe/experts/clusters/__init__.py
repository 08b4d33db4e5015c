"""What goes together by routing: clusters, similar experts, groups of experts that predict a topic.

A trace comes in; result tables come out.

- `groups` groups of experts that predict a topic better than any of them alone.
- `chosen_sets` combinations: the sets of experts that tokens choose together, tested against topics.
- `clustering` clusters of experts, documents and tokens; `units` describes these by their routing; `kmeans` number,
  stability and agreement of clusters with labels, each beside its null.
- `similarity` experts in pairs by topics, documents, tokens and weights, and whether these agree; `weights` by weights
  alone.
"""

from __future__ import annotations

from moe_probe.experts.clusters.chosen_sets import combinations
from moe_probe.experts.clusters.clustering import Clusters, cluster_routing
from moe_probe.experts.clusters.groups import expert_groups
from moe_probe.experts.clusters.kmeans import Agreement, Exchangeable, Partition, agreement, cluster_units, stability
from moe_probe.experts.clusters.similarity import Similarity, expert_similarity, mantel
from moe_probe.experts.clusters.weights import weight_similarity

__all__ = [
    "Agreement",
    "Clusters",
    "Exchangeable",
    "Partition",
    "Similarity",
    "agreement",
    "cluster_routing",
    "cluster_units",
    "combinations",
    "expert_groups",
    "expert_similarity",
    "mantel",
    "stability",
    "weight_similarity",
]
