"""What a trace says of itself: the manifest ``trace.json`` and the names of its parts.

Pure data, no arrays: read by every layer above. Unknown fields are refused, so that a typing
error in a hand-edited file, or a trace of a later version, is noticed at once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moe_probe.core.errors import MoeProbeError

TRACE_FORMAT = "moe_probe.trace"
TRACE_VERSION = 1
#: File of a trace that describes its other files.
MANIFEST = "trace.json"
#: How fingerprints of weights are computed today; it stands behind the hash. Those of earlier versions have nothing there.
FINGERPRINT_SCHEME = "t1"
#: Beginning of the settings of a manifest that say from which block on batches had another size, since memory differed.
BATCH_TOKENS_FROM = "batch_tokens_from_block_"
#: Types that weights can be loaded in.
DTYPES = ("float32", "bfloat16", "float16", "float64")

#: Columns that tables of a trace have anyway: a label of the same name would replace one of them.
RESERVED_LABELS = frozenset(
    {"document", "topic", "subtopic", "group", "split", "n_tokens", "text", "position", "token_id", "token", "special"}
)


#: Settings of a manifest that say what an imported record lacks: the ids of its tokens; documents, where rows are sums by topic.
WORDS, SUMS = "words", "rows_are_sums"
#: Setting of an imported trace: what the files are that it was made from.
IMPORTED_AS = "imported_as"


class Evidence(StrEnum):
    """How much a record of routing tells, from most to least: which claims it can support at all."""

    #: Every token's experts and its id: words can be ruled out as the reason.
    WORDS = "tokens with words"
    #: Every token's experts, but not which token it is.
    TOKENS = "tokens"
    #: Selections of whole documents: topics can be tested, words cannot be ruled out.
    DOCUMENTS = "documents"
    #: Selections summed by topic: effects without any test.
    COUNTS = "counts"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MoeLayer(_Model):
    """One place where a router sends tokens to experts."""

    #: Number used for this layer in every table: the model's own layer index where that is
    #: unique among its MoE layers, otherwise the ordinal of the place.
    layer: int
    #: Module path of the block that holds router and experts, e.g. ``model.layers.3.mlp``.
    name: str
    #: ``decoder``, ``encoder`` or, for models with further towers, the tower's name.
    stack: str = "decoder"
    num_experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    #: Class name of the router module.
    router: str = "unknown"
    #: Class name of the experts module.
    experts: str = "unknown"
    #: Number of shared (always active) experts, where the block has any.
    shared_experts: int = 0
    #: How ids and weights are captured: ``experts-input`` or the name of an adapter.
    capture: str = "imported"
    #: Anything a reader of the numbers has to know about this layer.
    note: str = ""


class ModelInfo(_Model):
    """Where the weights came from. A trace is only ever extended with the same fingerprint."""

    id: str
    revision: str | None = None
    architecture: str = "unknown"
    #: SHA-256 over names, shapes, dtypes and bytes of router and expert tensors, and how it was computed
    #: (`FINGERPRINT_SCHEME`); "" when imported.
    fingerprint: str = ""
    dtype: str = "unknown"
    quantization: str | None = None
    n_parameters: int | None = None


class CorpusInfo(_Model):
    """What was read, without its text."""

    name: str
    #: SHA-256 over the canonical form of every document, in order; "" when imported.
    hash: str = ""
    n_documents: int = 0
    #: Label columns beyond topic and subtopic (for example ``register``).
    label_columns: tuple[str, ...] = ()
    skipped_rows: int = 0


class FileEntry(_Model):
    """A file of the trace, relative to its directory, with what is needed to notice damage."""

    path: str
    size: int = Field(ge=0)
    sha256: str


class ShardEntry(_Model):
    """A run of documents written together: the unit of resuming."""

    index: int = Field(ge=0)
    n_documents: int = Field(ge=0)
    n_tokens: int = Field(ge=0)
    files: tuple[FileEntry, ...] = ()


class Windowing(_Model):
    """How documents longer than the context were cut."""

    max_length: int
    overlap: int


class Manifest(_Model):
    """Contents of ``trace.json`` (format version 1)."""

    format: Literal["moe_probe.trace"] = "moe_probe.trace"
    version: Literal[1] = 1
    status: Literal["writing", "sealed"] = "writing"
    model: ModelInfo
    tokenizer_hash: str = ""
    corpus: CorpusInfo
    layers: tuple[MoeLayer, ...]
    #: ``uint8`` or ``uint16``; the largest value of the type marks a slot without an expert.
    expert_dtype: Literal["uint8", "uint16"] = "uint8"
    has_weights: bool = True
    has_text: bool = True
    kept: tuple[str, ...] = ("routing",)
    #: Share of tokens whose hidden states and expert outputs were kept, when they were asked for.
    hidden_share: float = 1.0
    windowing: Windowing | None = None
    #: ``(i, n)``: this trace is part ``i``, counted from 0, of ``n`` contiguous parts of the corpus.
    shard_of: tuple[int, int] | None = None
    seed: int = 0
    #: Which program made it and under which versions.
    versions: dict[str, str] = Field(default_factory=dict)
    #: Settings that change what is in the files (tokens per shard, batch size ...).
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    n_documents: int = 0
    n_tokens: int = 0
    shards: tuple[ShardEntry, ...] = ()
    files: tuple[FileEntry, ...] = ()

    @property
    def evidence(self) -> Evidence:
        """What claims the record can support: its level of evidence."""
        if "routing" in self.kept:
            return Evidence.WORDS if self.settings.get(WORDS, True) else Evidence.TOKENS
        return Evidence.COUNTS if self.settings.get(SUMS, False) else Evidence.DOCUMENTS

    @property
    def part(self) -> str:
        """Say which part of the corpus this is, as ``--shard`` counts: ``part 1/4``, or ``the whole``."""
        return "the whole" if self.shard_of is None else f"part {self.shard_of[0]}/{self.shard_of[1]}"


def fingerprint_scheme(fingerprint: str) -> str:
    """Return how a fingerprint was computed: what stands behind its hash, "" for those of earlier versions."""
    return fingerprint.partition("-")[2]


def need_same_weights(loaded: ModelInfo, made_by: ModelInfo) -> None:
    """Check that a model has the routers and experts that a trace was collected from.

    Parameters
    ----------
    loaded, made_by : ModelInfo
        Of the model, and of the trace; a trace that does not know its weights fits every model.

    Raises
    ------
    MoeProbeError
        When they differ; it says so where the two were loaded in different types.
    """
    if not made_by.fingerprint or made_by.fingerprint == loaded.fingerprint:
        return
    why = "its routers and experts have other weights"
    if made_by.dtype and loaded.dtype and made_by.dtype != loaded.dtype:
        why = f"its weights were loaded as {loaded.dtype}, those of the trace as {made_by.dtype}"
    raise MoeProbeError(
        f"{loaded.id} is not the model of this trace", why, "--model with the one that the trace was collected from"
    )


def stored_dtype(made_by: ModelInfo) -> str:
    """Type of weights that the model of a trace has to be loaded in, ``auto`` where its checkpoint decides or none is known."""
    return made_by.dtype if made_by.dtype in DTYPES and made_by.quantization is None else "auto"
