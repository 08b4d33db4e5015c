"""The command `import`: routing that was recorded elsewhere becomes a trace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import Mode, Out, command
from moe_probe.core.errors import UsageError
from moe_probe.core.settings import Settings, setting
from moe_probe.recording.settings import CollectOptions

FORMATS = ("table", "vllm", "sglang", "fingerprints")
_SHARD_TOKENS = CollectOptions.model_fields["shard_tokens"].default


class ImportSettings(Settings):
    """Options of the command."""

    panel: ClassVar[str] = "What is recorded"

    format: str = setting(
        "table", "table (one row per token), vllm or sglang (one row per answer), fingerprints (one file each)"
    )
    topics: Path | None = setting(None, "CSV of dataset, category, topic, for fingerprints")
    num_experts: str | None = setting(
        None, "experts of each layer: one number, or 0:8,1:64 (layer:experts) where layers differ"
    )
    layers: tuple[int, ...] = setting((), "MoE layers to keep, as 1-23 or 1,3,5; servers return dense layers too")
    top_k: int | None = setting(None, "experts per token, for SGLang, whose answers do not say it", ge=1)
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


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(app, "import", "moe-probe import routing.parquet --out traces/mine --num-experts 32")(import_)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Interchange table (.parquet, .jsonl), answers (.jsonl, .json), or folder of fingerprints; text files may "
            "be .gz or .zst, and a folder or a glob stands for several.",
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
    from moe_probe.recording.importers import ImportOptions, import_fingerprints, import_responses, import_table

    if settings.format not in FORMATS:
        raise UsageError(f"--format {settings.format} is not known", "", "table, vllm, sglang or fingerprints")
    if settings.topics is not None and settings.format != "fingerprints":
        raise UsageError(
            f"--topics cannot be used with --format {settings.format}",
            "it names the topics of fingerprints",
            "omit --topics; the column topic names them",
        )
    options = ImportOptions(
        num_experts=settings.experts_by_layer(),
        model_id=settings.model_id,
        labels=settings.label,
        shard_tokens=settings.shard_tokens,
        layers=settings.layers or None,
        tokenizer=settings.tokenizer,
        drop_constant=settings.drop_constant,
    )
    if settings.format == "table":
        trace = import_table(source, out, options=options, mode=mode)
    elif settings.format == "fingerprints":
        trace = import_fingerprints(source, out, topics=settings.topics, options=options, mode=mode)
    else:
        trace = import_responses(source, out, top_k=settings.top_k, options=options, mode=mode)
    console.notes(trace.warnings)
    m = trace.manifest
    console.result(
        {"trace": str(out), "documents": m.n_documents, "tokens": trace.n_tokens, "warnings": list(trace.warnings)},
        f"Trace: {out}. Next: moe-probe analyze {out}",
    )
