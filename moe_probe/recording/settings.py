"""Settings of recording: which documents are read, and what is kept of the routing."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.settings import Settings, setting
from moe_probe.core.sites import KEEPABLE, ActivationSite
from moe_probe.recording.corpus import Columns, Corpus

_COLUMNS = Columns()


class CorpusSettings(Settings):
    """Which documents are read, from which columns; a bare string stands for ``source``."""

    panel: ClassVar[str] = "Corpus"

    source: str = Field(
        description="labelled documents: .jsonl, .csv, .parquet, a glob, a folder, or datasets:NAME",
        json_schema_extra={"flag": "-"},
    )
    id_column: str = setting(_COLUMNS.id, "column with a unique name")
    text_column: str = setting(_COLUMNS.text, "column with the text")
    topic_column: str = setting(_COLUMNS.topic, "column with the topic")
    subtopic_column: str = setting(_COLUMNS.subtopic, "column with the finer topic")
    group_column: str = setting(_COLUMNS.group, "column with the unit that is permuted (a source, a chapter)")
    split_column: str = setting(_COLUMNS.split, "column with a split of your own")
    label: tuple[str, ...] = setting(_COLUMNS.labels, "further label column to keep (repeat for more)")
    skip_bad: bool = setting(False, "leave out bad rows and count them, instead of stopping at the first")
    limit: int | None = setting(None, "read only so many documents", ge=1)
    dataset_config: str | None = setting(None, "configuration of a data set given as datasets:NAME")
    dataset_split: str | None = setting(None, "split of a data set given as datasets:NAME")

    @model_validator(mode="before")
    @classmethod
    def _accept_a_path(cls, given: Any) -> Any:
        return {"source": given} if isinstance(given, str) else given

    def open(self) -> Corpus:
        """Open the corpus that the settings name.

        Raises
        ------
        UsageError
            When a label column is named twice, or would replace a column of the trace.
        """
        columns = Columns(
            id=self.id_column,
            text=self.text_column,
            topic=self.topic_column,
            subtopic=self.subtopic_column,
            group=self.group_column,
            split=self.split_column,
            labels=self.label,
        )
        return Corpus(
            self.source,
            columns=columns,
            skip_bad=self.skip_bad,
            limit=self.limit,
            name=self.dataset_config,
            split=self.dataset_split,
        )


class CollectOptions(Settings):
    """What is kept of a forward pass, and in what pieces.

    Attributes
    ----------
    keep : tuple of str
        Any of `moe_probe.core.sites.KEEPABLE`; ``("usage",)`` keeps counts per document only.
    hidden_share : float
        Share of tokens whose hidden states, residual stream and expert outputs are kept (0 to 1), drawn by seed.
    hidden_layers : tuple of int
        MoE layers at which these and logits are kept; all when empty.
    max_length, overlap : int
        Tokens of the longest window, and of the left context that later windows repeat; 0 and -1 stand for what the model
        allows (at most 4096) and an eighth of that.
    batch_tokens : int
        Tokens of a forward pass at most (a single window may be longer); 0 or ``auto`` chooses by the memory that is free
        (4096 without a GPU). Less is tried where memory does not suffice.
    shard_tokens : int
        Tokens after which a shard is written: what an interruption can cost at most.
    text : bool
        Keep the documents' text in the trace.
    seed : int
    """

    panel: ClassVar[str] = "What is recorded"

    keep: tuple[str, ...] = setting(
        ("routing",),
        "beside routing: logits, hidden, residual, expert_output_norms, expert_outputs (repeat for more); or only usage",
    )
    hidden_share: float = setting(0.1, "share of tokens whose hidden states are kept")
    hidden_layers: tuple[int, ...] = setting((), "MoE layers at which these are kept, as 1,3 or 0-5; all if none")
    max_length: int = setting(0, "tokens of the longest window (0: the model's context, up to 4096)", ge=0)
    overlap: int = setting(-1, "tokens of context that windows repeat (-1: an eighth of a window)", ge=-1)
    batch_tokens: int = setting(0, "tokens of a forward pass (0: as many as fit into a GPU; 4096 without one)", ge=0)
    shard_tokens: int = setting(65536, "tokens of a shard: what an interruption can cost", ge=1)
    text: bool = setting(True, "keep the documents' text in the trace", flag="--text/--no-text")
    seed: int = setting(0, "seed of every random choice", flag="-")

    @field_validator("batch_tokens", mode="before")
    @classmethod
    def _accept_auto(cls, given: Any) -> Any:
        return 0 if given == "auto" else given

    @model_validator(mode="after")
    def _check_parts(self) -> CollectOptions:
        for part in self.keep:
            if part not in KEEPABLE:
                raise UsageError(f"--keep {part} is not known", did_you_mean(part, list(KEEPABLE)))
        if "usage" in self.keep and set(self.keep) - {"usage", "routing"}:
            raise UsageError(
                "--keep usage cannot be combined",
                "it means that nothing per token is kept",
                "omit usage: counts per document are always kept",
            )
        if not 0 < self.hidden_share <= 1:
            raise UsageError(f"a share of {self.hidden_share} is not between 0 and 1", "", "--hidden-share 0.1")
        return self

    def parts(self) -> tuple[str, ...]:
        """Parts of the trace: routing is always among them, unless usage alone is asked for."""
        if "usage" in self.keep:
            return ("usage",)
        return tuple(dict.fromkeys(("routing", *self.keep)))

    @property
    def sites(self) -> tuple[ActivationSite, ...]:
        """What is kept beside routing and usage, in the order of the enumeration."""
        return tuple(site for site in ActivationSite if site.keep in self.keep)

    @property
    def samples_tokens(self) -> bool:
        """Whether vectors are kept, and so only those of a sample of the tokens."""
        return any(site.sampled for site in self.sites)
