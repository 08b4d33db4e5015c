"""A record of the table of models: what one run says about one model on one corpus."""

from __future__ import annotations

import re
from math import isfinite
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moe_probe.core.schema import Evidence

#: Significant digits of every number that is not whole.
DIGITS = 4

#: Whether a topic's words were ruled out as the reason for its expert.
Words = Literal["ruled out", "not ruled out", "not judged", "not testable"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TopicRow(_Record):
    """One topic: its verdict from usage, and its expert or nearest candidate.

    Lifts are ratios: how many times as much the experts are used for the topic as on an average topic.
    """

    topic: str
    #: Groups of documents: the units of the tests.
    groups: int = Field(ge=0)
    #: Whether the topic had enough groups to be tested.
    tested: bool
    verdict: Literal["expert", "group", "none"]
    grade: str
    layer: int | None = None
    experts: tuple[int, ...] = ()
    lift: float | None = None
    #: Ends of the 95 % interval of the lift.
    lift_low: float | None = None
    lift_high: float | None = None
    #: Lift on documents that did not choose the expert.
    lift_held_out: float | None = None
    #: Share of the topic's selections in the layer, 0 to 1.
    share: float | None = None
    #: Confirmed on held-out documents; None where nothing was tested.
    replicated: bool | None = None
    words: Words
    #: Usage over what the topic's words predict.
    words_ratio: float | None = None
    #: Lift that an expert needs to be found with probability 0.8.
    detectable_lift: float | None = None


class Information(_Record):
    """Bits of topic per selection over the layers, with the mean under permuted topics removed; all None without a test."""

    mean: float | None = None
    smallest: float | None = None
    largest: float | None = None
    largest_layer: int | None = None
    #: Mean over layers of the bits under permuted topics, which `mean` is free of.
    null: float | None = None
    #: `mean` over `null`.
    over_null: float | None = None
    #: Share of the largest possible information, min(log2 topics, entropy of the load): mean and range over layers, and
    #: the mean under permuted topics.
    share_mean: float | None = None
    share_null: float | None = None
    share_smallest: float | None = None
    share_largest: float | None = None
    #: Omnibus p-value over all layers, experts and topics.
    p: float | None = None
    #: Layers whose own information has a p-value of at most alpha.
    layers_significant: int | None = None


class Decoding(_Record):
    """Share of held-out groups whose topic is decoded correctly; all None where topics could not be decoded."""

    best: float | None = None
    best_layer: int | None = None
    median: float | None = None
    #: The same with shuffled topics: median over layers, and the best layer.
    shuffled_median: float | None = None
    shuffled_best: float | None = None
    #: Share of the commonest topic.
    majority: float | None = None


class CorpusFacts(_Record):
    """What the model read, without its text."""

    name: str
    note: str = ""
    #: SHA-256 of the corpus, or of the imported file; "" where the trace does not know it.
    hash: str = ""
    #: SHA-256 over documents with their labels and groups: rows of one value were tested on the same documents and labels.
    documents_hash: str
    documents: int
    tokens: int
    #: Groups of documents that carry the label: the units of the tests.
    units: int
    label: str
    #: Label within whose values topics were permuted.
    strata: str | None = None


class ModelRow(_Record):
    """One row of the table of models.

    Attributes
    ----------
    model : str
    layers : int
        MoE layers.
    experts, top_k : tuple of int
        Per layer; several where layers differ.
    evidence : Evidence
        What the record of routing can support.
    corpus : CorpusFacts
    information : Information
    decoding : Decoding
    topics : tuple of TopicRow
        In alphabetical order.
    lift_threshold : float
        Lift that the verdict "expert" asks for.
    alpha : float
        Error rate of claims.
    permutations, seed : int
    versions : dict of str to str
        Of the programs that recorded the routing, and of moe_probe that made this record.
    """

    format: Literal["moe_probe.model_row"] = "moe_probe.model_row"
    version: Literal[1] = 1
    model: str
    layers: int = Field(ge=1)
    experts: tuple[int, ...]
    top_k: tuple[int, ...]
    evidence: Evidence
    corpus: CorpusFacts
    information: Information
    decoding: Decoding
    topics: tuple[TopicRow, ...]
    lift_threshold: float
    alpha: float
    permutations: int
    seed: int
    versions: dict[str, str]

    @property
    def tested(self) -> tuple[TopicRow, ...]:
        """Topics with enough groups to be tested."""
        return tuple(topic for topic in self.topics if topic.tested)

    @property
    def with_expert(self) -> tuple[TopicRow, ...]:
        """Topics that have an expert of their own."""
        return tuple(topic for topic in self.tested if topic.verdict == "expert")

    @property
    def with_group(self) -> tuple[TopicRow, ...]:
        """Topics without an expert that a group of experts has together."""
        return tuple(topic for topic in self.tested if topic.verdict == "group")

    @property
    def detectable_lift(self) -> float | None:
        """Median over the tested topics of the lift that would have been found with probability 0.8."""
        known = [topic.detectable_lift for topic in self.tested if topic.detectable_lift is not None]
        return rounded(median(known)) if known else None

    @property
    def stem(self) -> str:
        """Beginning of the file name: model, label and the first digits of the documents' hash."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{self.model} {self.corpus.label}".lower()).strip("-.")
        return f"{words or 'model'}-{self.corpus.documents_hash[:8]}"

    def strongest(self, most: int = 3) -> tuple[TopicRow, ...]:
        """Topics with the strongest experts: those with a verdict first, then by lift.

        Parameters
        ----------
        most : int

        Returns
        -------
        tuple of TopicRow
            Topics without any candidate are left out.
        """
        order = {"expert": 0, "group": 1, "none": 2}
        known = [topic for topic in self.topics if topic.lift is not None]
        known.sort(key=lambda t: (order[t.verdict], not t.tested, -(t.lift or 0.0), t.topic))
        return tuple(known[:most])


def rounded(value: Any) -> float | None:
    """Round a number to `DIGITS` significant digits; None where it is missing or infinite, before or after."""
    if value is None or value != value:
        return None
    out = float(f"{float(value):.{DIGITS}g}")
    return out if isfinite(out) else None
