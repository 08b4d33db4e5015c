"""What goes together by routing: experts, documents, tokens; groups of experts that carry a topic."""

from __future__ import annotations

from moe_probe.experts.clusters.groups import combinations, expert_groups
from moe_probe.experts.clusters.kmeans import Agreement, Partition, agreement, cluster_units, stability
from moe_probe.experts.clusters.similarity import Similarity, expert_similarity, mantel
from moe_probe.experts.clusters.units import Clusters, cluster_routing
from moe_probe.experts.clusters.weights import weight_similarity

__all__ = [
    "Agreement",
    "Clusters",
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
