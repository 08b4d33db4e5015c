"""Captions and sources of the result tables of a tree."""

from __future__ import annotations

SOURCES = (
    "Bricken et al. 2023, feature splitting, https://transformer-circuits.pub/2023/monosemantic-features",
    "Leask et al. 2025, novel latents and stitching, arXiv:2502.04878",
    "Paulo and Belrose 2025, features of other seeds, arXiv:2501.16615",
    "Vinh, Epps and Bailey 2010, adjusted mutual information, https://jmlr.org/papers/v11/vinh10a.html",
)
SUBJECT_SOURCES = (
    "Simpson 1949, index of concentration, DOI 10.1038/163688a0",
    "Mantel 1967, agreement of distances, https://pubmed.ncbi.nlm.nih.gov/6018555/",
    "Berger and Hsu 1996, intersection-union tests, DOI 10.1214/ss/1032280304",
    "Benjamini and Hochberg 1995, false discovery rate, DOI 10.1111/j.2517-6161.1995.tb02031.x",
    "Monroe, Colaresi and Quinn 2008, words that tell sets apart, DOI 10.1093/pan/mpn018",
)
CONCEPT_SOURCES = (
    "Gurnee et al. 2023, sparse probes, arXiv:2305.01610",
    "Chanin et al. 2024, splitting and absorption, arXiv:2409.14507",
    "Karvonen et al. 2025, absorption as in SAEBench, arXiv:2503.09532",
)
DEPTH_SOURCES = (
    "Paulo and Belrose 2025, cosine of one feature, arXiv:2501.16615",
    "Paulo et al. 2024, detection scoring of feature labels, arXiv:2410.13928",
)

TREE = (
    "Features of a wider SAE (children) joined to features of a narrower one (parents), on held-out documents. By "
    "direction: cosine of decoder rows of at least 0.7. By firing: the parent fires on at least half of the child's tokens;"
    " of such parents, the one that shares most information with the child. Inside: share of the child's tokens on which "
    "the parent fires. Share: share of the parent's tokens that the child takes. Same: the child takes half of the parent's"
    " tokens or more. Part: it takes less. Overlap: it mostly fires elsewhere."
)
SPLITTING = (
    "How the features of one width divide at the next wider one, one row per pair of widths. Split: parents with two parts "
    "or more. Kept: parents with a child that is the same. Novel: children along whose direction no parent points. Stitched"
    " novel: children that lower the narrower SAE's error when they are added to it. Orphans: children without a parent. A "
    "narrow dictionary must bundle many features, so splitting alone says little. The nulls come from an SAE of the "
    "narrower width and another seed. Seed agreement: how alike it groups the children (adjusted mutual information; "
    "chance: 0). Seed same: share of the narrower SAE's features that the other seed has too. Split same width: share of "
    'features that "split" when they are joined to the other seed\'s, where no width was added. Novel same width: share of '
    "the other seed's features along whose direction no feature points."
)
SUBJECTS = (
    "How often siblings in the tree share a topic. Purity: chance that firings of two siblings, from different documents, "
    "are about the same topic (mean over nodes with two parts or more). Expected: the same when features are permuted over "
    "the tree, among those that fire about as often. p: the larger of two permutation tests. One permutes topics over "
    "documents (tree and firings stay), the other permutes features over the tree. Trees: of this run; with the parents of "
    "another seed; and, as a null of width, a dictionary joined to one of the same width and another seed. The last two use"
    " a tenth of the permutations, so that their p cannot be small. Judged: nodes that could be judged; shares of kinds "
    "refer to these. Found beside: nodes of one subject among those in which the test rarely finds one."
)
NODES = (
    "What the children of every node have to do with the topics of the corpus. One subject: siblings share a topic more "
    "often than strangers do (q: Benjamini-Hochberg over nodes, of the larger p of both nulls). By its parts: the children "
    "also keep to different subtopics of that topic (subtopics permuted within the topic). Several subjects: not one, and "
    "children are enriched for different topics. No subject: neither. Could not be judged: no subject was found, but such a "
    "test would be weak. It finds fewer than 80 % (power) of comparable pure nodes, or the node is as pure as the upper 95 % of "
    "those (pure_low). Pure nodes are made of the clearest quarter of the tree's topical features, with as many children that "
    "fire about as often."
)
DISTANCE = (
    "Whether features that are close in the tree are close in the taxonomy of topics. Taxonomy distance between firings of "
    "two features of the widest SAE, from different documents: 0 same subtopic, 1 same topic, 2 different topics. Siblings "
    "have the same parent, cousins the same grandparent, strangers neither. Correlation: of tree distance with taxonomy "
    "distance (Mantel), compared with labels permuted over documents and with features permuted over leaves."
)
EXAMPLES = (
    "The clearest node of every kind, chosen by rules that look at no text: largest purity less the expected one; most "
    "children that each have a topic, and least purity; most children (also of nodes that could not be judged). Words: "
    "those that set a child's firings apart from its siblings' (log-odds with a Dirichlet prior, z above 1.96)."
)
CONCEPTS = (
    "How many features every topic takes, as a concept of tokens. F1 on held-out documents: of a linear probe, and of "
    "probes on the 1, 2, 3 ... features that predict the topic best. Splits: 1, or the k whose F1 exceeds that of all "
    "smaller ones by 0.03. Absorption: share of the concept's part in the activation that other features hold where its own"
    " are weak. A text on a topic is full of words that have nothing to do with it, so F1 is low by nature: compare columns"
    " with each other, not with 1."
)
DEPTH_FIRST = (
    "Features about {subject} that two ways of training find for their operations. Depth-first: small dictionaries on the "
    "tokens where feature {number} of {name} fires, and again where their features fire. Breadth-first: dictionaries on all"
    " tokens, one that takes as many operations, and those of the run. Operations: training, and encoding the training "
    "tokens once; the dictionary of the root exists before, and took {operations:.2g}. Subject: features enriched for the "
    "topic over documents. Good: those of the subject whose label, made by a rule, holds on held-out documents, and that "
    "fire on at least half of the tokens that the label speaks of. Distinct: good features of which no two directions are "
    "closer than a cosine of 0.7."
)
DEPTH_FEATURES = (
    "Features of the small dictionaries below the root. Path: latents from the root's dictionary down to the one that the "
    "feature belongs to."
)
