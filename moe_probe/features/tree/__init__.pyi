from .build import build_tree, tree_lines
from .concepts import Sample, split_of_concept
from .depth_comparison import depth_first
from .dictionary import Dictionary
from .distance import Ancestors, tree_distance
from .edges import Level, agreement, join, splitting
from .examples import distinctive_words
from .kinds import KINDS, UNJUDGED, kind_of_node
from .ladders import SaeLadder, iter_sae_ladders
from .options import DepthFirstSettings, DepthOptions, TreeSettings
from .power import NodePower, node_power
from .same_label import Labelling, SameLabel
from .siblings import parts_of_subject, purity, sibling_pairs
from .small_dictionaries import grow
from .stitching import stitched_change
from .subject_tests import SubjectTester
from .subjects import Subjects, bundled
from .walk import walk_feature, walk_word, word_walk_lines

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
