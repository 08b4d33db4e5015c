"""Feature splitting: how the features of a wider SAE divide those of a narrower one, and whether along human subjects.

In come a run's SAEs of two widths or more, out go result tables; the modules in the way of the data:

- `ladders` opens the SAEs of each layer from narrow to wide; `join` finds every feature's parent; `stitching` asks what is new.
- `subjects` gives firing rates in groups of documents; `same_label`, `nulls`, `siblings`, `power` and `distance` are the
  statistics of a tree against topics; `subject_tests` runs them, and `kinds` names what they find of a node.
- `concepts` counts features per topic, `examples` chooses nodes to read, `annotations` has labels, `captions` the texts.
- `build` puts all of it together (`build_tree`); `walk` reads a tree that was built; `stage` is its place in a run.
- `depth_root`, `small_dictionaries`, `depth_judge`, then `depth_first`: dictionaries trained only where a feature fires.
"""

from __future__ import annotations

from moe_probe.features.tree.build import build_tree, tree_lines
from moe_probe.features.tree.concepts import Sample, split_of_concept
from moe_probe.features.tree.depth_comparison import depth_first
from moe_probe.features.tree.distance import Ancestors, tree_distance
from moe_probe.features.tree.edges import Level, agreement, join, splitting
from moe_probe.features.tree.examples import distinctive_words
from moe_probe.features.tree.kinds import KINDS, UNJUDGED, kind_of_node
from moe_probe.features.tree.ladders import Dictionary, SaeLadder, iter_sae_ladders
from moe_probe.features.tree.options import DepthFirstSettings, DepthOptions, TreeSettings
from moe_probe.features.tree.power import NodePower, node_power
from moe_probe.features.tree.same_label import Labelling, SameLabel
from moe_probe.features.tree.siblings import parts_of_subject, purity, sibling_pairs
from moe_probe.features.tree.small_dictionaries import grow
from moe_probe.features.tree.stitching import stitched_change
from moe_probe.features.tree.subject_tests import SubjectTester
from moe_probe.features.tree.subjects import Subjects, bundled
from moe_probe.features.tree.walk import walk_feature, walk_word, word_walk_lines

__all__ = [
    "KINDS",
    "UNJUDGED",
    "Ancestors",
    "DepthFirstSettings",
    "DepthOptions",
    "Dictionary",
    "Labelling",
    "Level",
    "NodePower",
    "SaeLadder",
    "SameLabel",
    "Sample",
    "SubjectTester",
    "Subjects",
    "TreeSettings",
    "agreement",
    "build_tree",
    "bundled",
    "depth_first",
    "distinctive_words",
    "grow",
    "iter_sae_ladders",
    "join",
    "kind_of_node",
    "node_power",
    "parts_of_subject",
    "purity",
    "sibling_pairs",
    "split_of_concept",
    "splitting",
    "stitched_change",
    "tree_distance",
    "tree_lines",
    "walk_feature",
    "walk_word",
    "word_walk_lines",
]
