"""Options of the tree and of depth-first training, apart from what they are options of."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe_probe.sae.config import TrainOptions


@dataclass(frozen=True)
class TreeSettings:
    """How a tree is built and tested.

    Attributes
    ----------
    null : bool
        Retrain every narrower SAE from another seed, as a null.
    by, finer : str
        Label columns of the corpus's own taxonomy: topic and subtopic.
    permutations : int
        Permutations behind every p-value.
    alpha : float
        False discovery rate of nodes.
    concepts : bool
        Count the features that each topic takes, and measure absorption.
    seed : int
        Seed of all permutations and samples.
    strata : str, optional
        Label column within which topics are permuted over documents.
    """

    null: bool = True
    by: str = "topic"
    finer: str = "subtopic"
    permutations: int = 300
    alpha: float = 0.05
    concepts: bool = True
    seed: int = 0
    strata: str | None = None


@dataclass(frozen=True)
class DepthOptions:
    """How small dictionaries are trained below a feature.

    Attributes
    ----------
    width, k : int
        Latents of every small dictionary, and active ones per token.
    depth : int
        Levels below the root.
    min_tokens : int
        Training tokens below which a node gets no dictionary: 20 per latent by default.
    most : int
        Dictionaries in all; the features with most tokens come first.
    passes : int
        Passes over a node's tokens.
    learning_rate : float
        Peak learning rate.
    seed : int
        Seed of weights and batches.
    """

    width: int = 32
    k: int = 4
    depth: int = 3
    min_tokens: int = 640
    most: int = 24
    passes: int = 8
    learning_rate: float = TrainOptions.learning_rate
    seed: int = 0


@dataclass(frozen=True)
class DepthFirstSettings:
    """Where depth-first training starts, how it goes on, and how its features are judged.

    Attributes
    ----------
    feature : str, optional
        Root, as ``layer_05/width_00256:12``; None for the narrowest SAE's feature that predicts the topic best.
    topic : str, optional
        Topic that features are counted for; None for the one of the root.
    dictionaries : DepthOptions, optional
        Of the small dictionaries; None for the defaults with the seed of `tests`.
    tests : TreeSettings
        Label column, strata, permutations, alpha and seed of the tests of features.
    """

    feature: str | None = None
    topic: str | None = None
    dictionaries: DepthOptions | None = None
    tests: TreeSettings = field(default_factory=TreeSettings)

    @property
    def depth_options(self) -> DepthOptions:
        """Options of the small dictionaries, with the default filled in."""
        return self.dictionaries or DepthOptions(seed=self.tests.seed)
