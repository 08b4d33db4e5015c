"""Settings of an import, and what is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_probe.core.errors import UsageError
from moe_probe.core.routing import dropped_id
from moe_probe.core.schema import RESERVED_LABELS
from moe_probe.recording.importers.label_columns import LabelColumns


@dataclass(frozen=True)
class ImportOptions:
    """How recorded routing is read.

    Attributes
    ----------
    num_experts : int or mapping of layer to int, optional
        Experts per layer. Where it does not say, the file's own metadata or columns are used, and failing
        that the largest id seen, with a warning: an expert that was never selected does not show in ids.
    model_id : str
        Name of the model for captions.
    labels : tuple of str
        Further columns to keep with each document.
    shard_tokens : int
        Tokens after which a shard is written.
    layers : tuple of int, optional
        Layers to keep; without it all that have routing. A dense layer is omitted, with a warning.
    tokenizer : Path, optional
        Folder of the model's tokenizer, to give token ids their text and to know special tokens.
    drop_constant : bool
        Omit tokens that share one set of experts in every layer with many others (warm-up requests).
    top_k : int, optional
        Experts that a token selects in a layer, for records of counts that do not say it.
    columns : LabelColumns
        Columns of the table of documents that goes with arrays.

    Raises
    ------
    UsageError
        When a value is invalid.
    """

    num_experts: int | Mapping[int, int] | None = None
    model_id: str = "unknown"
    labels: tuple[str, ...] = ()
    shard_tokens: int = 65536
    layers: tuple[int, ...] | None = None
    tokenizer: Path | None = None
    drop_constant: bool = False
    top_k: int | None = None
    columns: LabelColumns = field(default_factory=LabelColumns)

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        for name in self.labels:
            if name in RESERVED_LABELS or not name.strip():
                raise UsageError(
                    f"--label {name} is not a further label",
                    "a trace has a column of that name anyway",
                    "omit it, or rename the column",
                )
        given = self.num_experts.values() if isinstance(self.num_experts, Mapping) else [self.num_experts]
        for n in given:
            if n is not None and not 1 <= n <= dropped_id("uint16"):
                raise UsageError(
                    f"--num-experts {n} is not a number of experts",
                    f"a layer has 1 to {dropped_id('uint16'):,}",
                    "--num-experts 64, or 0:8,1:64",
                )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"--top-k {self.top_k} is not a number of experts", "a token selects 1 or more", "--top-k 2")
        if self.shard_tokens < 1:
            raise UsageError(f"--shard-tokens {self.shard_tokens} is not a number of tokens", "", "--shard-tokens 65536")

    def experts_of(self, layer: int) -> int | None:
        """Return the number of experts that the options give a layer, or None."""
        return self.num_experts if isinstance(self.num_experts, int) else (self.num_experts or {}).get(layer)


@dataclass(frozen=True)
class ImportSource:
    """What is imported, beside the records themselves.

    Attributes
    ----------
    layers : sequence of int
        Layer number of every column of the records' arrays.
    name, hash : str
        Name and SHA-256 of what is imported.
    num_experts : mapping of layer to int
        What the file itself says, where it does.
    every_layer : bool
        Whether there is a column for every hidden layer, zeros in dense ones, as serving engines return it.
    words : bool
        Whether the ids of the tokens are known; else each is `moe_probe.recording.trace.checks.NO_ID`.
    kind : str
        What the files are, for the run card.
    sums : bool
        Of counts: whether a row is a sum over unnamed documents of a topic, so that nothing can be tested.
    """

    layers: Sequence[int]
    name: str
    hash: str
    num_experts: Mapping[int, int] = field(default_factory=dict)
    every_layer: bool = False
    words: bool = True
    sums: bool = False
    kind: str = "records in memory"
