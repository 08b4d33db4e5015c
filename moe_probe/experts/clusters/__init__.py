"""What goes together by routing: clusters, similar experts, groups of experts that predict a topic.

A trace comes in; result tables come out. `groups` chooses groups of experts per topic, `chosen_sets` takes the
combinations that tokens choose, `clustering` clusters experts, documents and tokens (described in `units`) by
`kmeans`, `similarity` and `weights` compare experts in pairs.
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
