"""Feature splitting: how the features of a wider dictionary divide those of a narrower one, and whether along human lines."""

from __future__ import annotations

from moe_probe.features.tree.concepts import ConceptSplit, Sample, split_of_concept
from moe_probe.features.tree.distance import Distances, tree_distance
from moe_probe.features.tree.examples import KINDS, UNJUDGED, choose_examples, kind_of_node, telling_words
from moe_probe.features.tree.join import Level, Splitting, agreement, join, splitting
from moe_probe.features.tree.power import POWER, NodePower, node_power
from moe_probe.features.tree.same_label import Labelling, SameLabel, bundled
from moe_probe.features.tree.siblings import (
    Pairs,
    Purity,
    Subjects,
    Verdict,
    best_parents,
    parts_of_subject,
    purity,
    sibling_pairs,
)
from moe_probe.features.tree.small_dictionaries import DepthOptions, Grown, grow
from moe_probe.features.tree.stitching import stitched_change

__all__ = [
    "KINDS",
    "POWER",
    "UNJUDGED",
    "ConceptSplit",
    "DepthOptions",
    "Distances",
    "Grown",
    "Labelling",
    "Level",
    "NodePower",
    "Pairs",
    "Purity",
    "SameLabel",
    "Sample",
    "Splitting",
    "Subjects",
    "Verdict",
    "agreement",
    "best_parents",
    "bundled",
    "choose_examples",
    "grow",
    "join",
    "kind_of_node",
    "node_power",
    "parts_of_subject",
    "purity",
    "sibling_pairs",
    "split_of_concept",
    "splitting",
    "stitched_change",
    "telling_words",
    "tree_distance",
]
