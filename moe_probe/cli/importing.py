"""The command `import`: routing that was recorded elsewhere becomes a trace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import Mode, Out, command
from moe_probe.core.errors import UsageError
from moe_probe.core.settings import Settings, flag_of, setting
from moe_probe.core.text import quoted
from moe_probe.recording.importers.label_columns import LabelColumns
from moe_probe.recording.settings import CollectOptions

if TYPE_CHECKING:
    from moe_probe.recording.importers import ImportOptions

#: Recordings of engines, a file each.
RECORDINGS = ("sglang-distribution", "imatrix")
FORMATS = ("table", "arrays", "usage", "vllm", "sglang", "fingerprints", *RECORDINGS)
_ARRAYS = ("arrays", "usage", *RECORDINGS)
#: Options that only some formats have, and why the others have none.
_ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "topics": (("fingerprints",), "it names the topics of fingerprints"),
    "documents": (_ARRAYS, "the other formats have labels beside the routing"),
    "topic": (_ARRAYS, "the other formats have a topic for every document"),
    **{
        f"{name}_column": (_ARRAYS, "the other formats have fixed names of columns")
        for name in ("id", "topic", "subtopic", "group", "split")
    },
    "tokens_column": (("usage", *RECORDINGS), "the other formats have the tokens themselves"),
    "sums": (("usage",), "the other formats have documents"),
    "files_are_documents": (RECORDINGS, "the other formats have documents"),
    "top_k": (("usage", "sglang", "vllm", *RECORDINGS), "the routing itself shows it"),
    "tokenizer": (tuple(name for name in FORMATS if name not in ("usage", "imatrix")), "counts have no tokens"),
    "shard_tokens": (tuple(name for name in FORMATS if name not in ("usage", "imatrix")), "counts have no tokens"),
}
_COLUMNS = LabelColumns()
_SHARD_TOKENS = CollectOptions.model_fields["shard_tokens"].default


class ImportSettings(Settings):
    """Options of the command."""

    panel: ClassVar[str] = "What is recorded"

    format: str = setting(
        "table",
        "table (one row per token), arrays (experts of tokens as .npz or .safetensors), usage (counts or fractions of "
        "documents), vllm or sglang (one row per answer), fingerprints (one file each), sglang-distribution (files of SGLang's "
        "recorder), imatrix (GGUF files of llama.cpp)",
    )
    topics: Path | None = setting(None, "CSV of dataset, category, topic, for fingerprints")
    num_experts: str | None = setting(
        None, "experts of each layer: one number, or 0:8,1:64 (layer:experts) where layers differ"
    )
    layers: tuple[int, ...] = setting((), "MoE layers to keep, as 1-23 or 1,3,5; servers return dense layers too")
    top_k: int | None = setting(None, "experts per token, where counts or SGLang's answers do not say it", ge=1)
    documents: Path | None = setting(
        None, "labels of arrays and usage, row i for document i [default: documents.parquet or .csv beside the file]"
    )
    topic: str | None = setting(None, "one topic for all documents of arrays or usage, in place of labels")
    id_column: str = setting(_COLUMNS.document, "column of the labels with a unique name")
    topic_column: str = setting(_COLUMNS.topic, "column of the labels with the topic")
    subtopic_column: str = setting(_COLUMNS.subtopic, "column of the labels with the finer topic")
    group_column: str = setting(_COLUMNS.group, "column of the labels with the unit that is permuted (a source)")
    split_column: str = setting(_COLUMNS.split, "column of the labels with a split of your own")
    tokens_column: str = setting(_COLUMNS.tokens, "column of the labels with the number of tokens, for usage")
    sums: bool = setting(False, "rows of usage are sums by topic, without documents: effects only, nothing can be tested")
    files_are_documents: bool = setting(
        False, "each recording of counts is a document or an independent shard; else files of a topic are added up"
    )
    tokenizer: Path | None = setting(
        None, "folder of the model's tokenizer: gives token ids their text and leaves special tokens out of the counts"
    )
    drop_constant: bool = setting(
        False, "leave out tokens that share one set of experts in every layer with many others, as warm-up requests do"
    )
    model_id: str = setting("unknown", "name of the model, for captions")
    label: tuple[str, ...] = setting((), "further label column to keep (repeat for more)")
    shard_tokens: int = setting(_SHARD_TOKENS, "tokens of a shard: what an interruption can cost", ge=1)

    def experts_by_layer(self) -> int | dict[int, int] | None:
        """Read ``--num-experts``.

        Raises
        ------
        UsageError
            When it is neither a number nor a list of layer:experts.
        """
        text = self.num_experts
        if text is None:
            return None
        if re.fullmatch(r"\s*\d{1,6}\s*", text, re.ASCII):
            return int(text)
        experts: dict[int, int] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d{1,6})\s*:\s*(\d{1,6})\s*", part, re.ASCII)
            if not match or int(match[1]) in experts:
                raise UsageError(
                    f"--num-experts {text} cannot be read",
                    f"'{part}' is not layer:experts, or the layer comes twice",
                    "--num-experts 64, or --num-experts 0:8,1:64",
                )
            experts[int(match[1])] = int(match[2])
        return experts

    def check(self) -> None:
        """Refuse an unknown format, and options that the format does not have.

        Raises
        ------
        UsageError
            Naming the option.
        """
        if self.format not in FORMATS:
            raise UsageError(f"--format {self.format} is not known", "", f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
        for name in self.model_fields_set & set(_ONLY):
            formats, why = _ONLY[name]
            if self.format not in formats:
                flag = flag_of(type(self), name)
                hint = "omit --topics; the column topic names them" if name == "topics" else f"omit {flag}"
                raise UsageError(f"{flag} cannot be used with --format {self.format}", why, hint)

    def options(self) -> ImportOptions:
        """Make the options of the importers."""
        from moe_probe.recording.importers import ImportOptions

        return ImportOptions(
            num_experts=self.experts_by_layer(),
            model_id=self.model_id,
            labels=self.label,
            shard_tokens=self.shard_tokens,
            layers=self.layers or None,
            tokenizer=self.tokenizer,
            drop_constant=self.drop_constant,
            top_k=self.top_k,
            columns=LabelColumns(
                document=self.id_column,
                topic=self.topic_column,
                subtopic=self.subtopic_column,
                group=self.group_column,
                split=self.split_column,
                tokens=self.tokens_column,
            ),
        )


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "import",
        "moe-probe import routing.parquet --out traces/mine --num-experts 32",
        "experts of tokens in arrays: moe-probe import law.npz --format arrays --topic law --num-experts 64 --out traces/law",
        "shares of prompts: moe-probe import fractions.npz --format usage --top-k 2 --topic-column subject --out traces/mmlu",
    )(import_)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Interchange table (.parquet, .jsonl), arrays (.npz, .safetensors), counts as arrays or as a long table "
            "(.parquet, .csv), answers (.jsonl, .json), files of recorders, or folder of fingerprints; text files "
            "of tables and answers may be .gz or .zst, and a folder or a glob stands for several.",
            show_default=False,
        ),
    ],
    *,
    out: Out,
    mode: Mode,
    settings: ImportSettings,
    console: Console,
) -> None:
    """Make a trace from routing that was recorded elsewhere."""
    from moe_probe.recording.importers import (
        import_arrays,
        import_fingerprints,
        import_imatrix,
        import_responses,
        import_sglang_distribution,
        import_table,
        import_usage,
    )

    settings.check()
    options = settings.options()
    documents, topic = settings.documents, settings.topic
    if settings.format == "arrays":
        trace = import_arrays(source, out, documents=documents, topic=topic, options=options, mode=mode)
    elif settings.format == "usage":
        trace = import_usage(source, out, documents=documents, topic=topic, sums=settings.sums, options=options, mode=mode)
    elif settings.format in RECORDINGS:
        importer = import_imatrix if settings.format == "imatrix" else import_sglang_distribution
        trace = importer(
            source,
            out,
            documents=settings.documents,
            topic=settings.topic,
            files_are_documents=settings.files_are_documents,
            options=options,
            mode=mode,
        )
    elif settings.format == "table":
        trace = import_table(source, out, options=options, mode=mode)
    elif settings.format == "fingerprints":
        trace = import_fingerprints(source, out, topics=settings.topics, options=options, mode=mode)
    else:
        trace = import_responses(source, out, top_k=settings.top_k, options=options, mode=mode)
    console.notes(trace.warnings)
    m = trace.manifest
    console.result(
        {"trace": str(out), "documents": m.n_documents, "tokens": trace.n_tokens, "warnings": list(trace.warnings)},
        f"Trace: {out}. Next: moe-probe analyze {quoted(out)}",
    )
