"""Settings of a run: one definition for the Python call, ``run.yaml`` and the options of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_probe.core.files import write_text
from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.sites import HOOKS, ActivationSite
from moe_probe.core.textfiles import read_text

_MODEL, _CORPUS, _TRACE, _STATS, _SAE, _CAUSES = (
    "Model", "Corpus", "What is recorded", "Statistics", "Sparse autoencoders", "Causes")


def _setting(default: Any, text: str, panel: str, **limits: Any) -> Any:
    return Field(default, description=text, json_schema_extra={"panel": panel}, **limits)


class RunConfig(BaseModel):
    """What decides the numbers of a run. Unknown names are refused, so that a typing error shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="folder of a checkpoint, or its name on a hub")
    revision: str | None = _setting(None, "branch, tag or commit of a hub repository", _MODEL)
    dtype: str = _setting("auto", "type of the weights: auto, float32, bfloat16, float16", _MODEL)
    device: str = _setting("auto", "cpu, cuda, cuda:1 ...; auto takes the first GPU", _MODEL)
    experts_implementation: str | None = _setting(
        None, "how transformers computes experts: eager, grouped_mm, batched_mm", _MODEL)
    trust_remote_code: bool = _setting(False, "run Python code that comes with the checkpoint", _MODEL)

    corpus: str = Field(description="labelled documents: .jsonl, .csv, .parquet, a glob, a folder, or datasets:NAME")
    id_column: str = _setting("id", "column with a unique name", _CORPUS)
    text_column: str = _setting("text", "column with the text", _CORPUS)
    topic_column: str = _setting("topic", "column with the topic", _CORPUS)
    subtopic_column: str = _setting("subtopic", "column with the finer topic", _CORPUS)
    group_column: str = _setting("group", "column with the unit that is permuted (a source, a chapter)", _CORPUS)
    split_column: str = _setting("split", "column with a split of your own", _CORPUS)
    label: tuple[str, ...] = _setting((), "further label column to keep (repeat for more)", _CORPUS)
    skip_bad: bool = _setting(False, "leave out bad rows and count them, instead of stopping at the first", _CORPUS)
    limit: int | None = _setting(None, "read only so many documents", _CORPUS, ge=1)
    dataset_config: str | None = _setting(None, "configuration of a data set given as datasets:NAME", _CORPUS)
    dataset_split: str | None = _setting(None, "split of a data set given as datasets:NAME", _CORPUS)

    keep: tuple[str, ...] = _setting(
        (), "more than routing: logits, hidden, residual, expert_output_norms, expert_outputs; or less: usage", _TRACE)
    hidden_share: float = _setting(0.1, "share of tokens whose hidden states are kept", _TRACE, gt=0, le=1)
    hidden_layers: tuple[int, ...] = _setting((), "MoE layer at which these are kept (repeat for more; all if none)", _TRACE)
    max_length: int = _setting(0, "tokens a window holds at most (0: the model's context, up to 4096)", _TRACE, ge=0)
    overlap: int = _setting(-1, "tokens of context that windows repeat (-1: an eighth of a window)", _TRACE, ge=-1)
    batch_tokens: int = _setting(4096, "tokens of a forward pass", _TRACE, ge=1)
    shard_tokens: int = _setting(65536, "tokens of a shard: what an interruption can cost", _TRACE, ge=1)
    no_text: bool = _setting(False, "do not keep the documents' text in the trace", _TRACE)

    by: str = _setting("topic", "label that experts are tested against: topic, subtopic or a --label column", _STATS)
    strata: str | None = _setting(None, "label within which documents are permuted (register, source ...)", _STATS)
    permutations: int = _setting(1000, "label permutations behind every p-value", _STATS, ge=99)
    alpha: float = _setting(0.05, "error rate that claims are held to", _STATS, gt=0, lt=1)
    seed: int = 0

    sae_widths: tuple[int, ...] = _setting((), "latents of an SAE to train (repeat for more); none: no SAEs", _SAE)
    sae_layers: tuple[int, ...] = _setting((), "MoE layer to train SAEs on (repeat for more; first, middle, last if none)",
                                           _SAE)
    sae_hook: str = _setting("router_input", "what SAEs read: router_input, expert_output, residual", _SAE)
    sae_architecture: str = _setting("topk", "topk, batchtopk, matryoshka, jumprelu, standard", _SAE)
    sae_k: int = _setting(16, "active latents a token", _SAE, ge=1)
    sae_epochs: int = _setting(4, "passes over the activations", _SAE, ge=1)

    tree: bool = _setting(True, "join SAEs of rising width into a tree (where a layer has two widths)", _SAE)
    depth_first: bool = _setting(False, "train small dictionaries below the clearest coarse feature, and compare", _SAE)

    ablate: str = _setting("", "knock out the experts and features that verdicts rest on: mask, zero or mean; none if empty",
                           _CAUSES)
    ablate_tokens: int = _setting(24_576, "tokens of held-out documents that losses are measured on", _CAUSES, ge=256)

    def kept(self) -> tuple[str, ...]:
        """Parts of the trace: routing is always among them, unless usage alone is asked for; SAEs need activations."""
        if "usage" in self.keep:
            return self.keep
        wanted = dict.fromkeys(self.keep)
        if self.sae_widths:
            wanted[ActivationSite(self.sae_hook).keep if self.sae_hook in HOOKS else "hidden"] = None
        wanted.pop("routing", None)
        return ("routing", *wanted)

    def kept_layers(self) -> tuple[int, ...]:
        """Layers at which activations are kept: those named, else those of the SAEs, else (empty) all."""
        return self.hidden_layers or (self.sae_layers if self.sae_widths else ())


def load_config(path: str | Path | None, overrides: dict[str, Any]) -> RunConfig:
    """Read ``run.yaml`` and let the command line's options override it.

    Raises
    ------
    UsageError
        Naming the setting that is unknown, missing or out of range.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        import yaml

        try:
            read = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise UsageError(f"{path} cannot be read", " ".join(str(error).split()), "a YAML file of settings") from error
        if not isinstance(read, dict):
            raise UsageError(f"{path} is not a list of settings", "", "lines such as `model: path/to/model`")
        settings |= read
    settings |= {k: v for k, v in overrides.items() if v is not None and v != []}
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        # an unknown name explains a missing one: say it first
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UsageError(f"'{name}' is not a setting", str(path or ""),
                             did_you_mean(name, list(RunConfig.model_fields))) from error
        if first["type"] == "missing":
            raise UsageError(f"no {name} was given", RunConfig.model_fields[name].description or "",
                             "moe-probe run MODEL --corpus FILE --out RUN") from error
        raise UsageError(f"--{name.replace('_', '-')} {first['input']!r} is invalid", first["msg"]) from error


def dump_config(config: RunConfig, path: Path) -> None:
    """Write every setting, defaults included, so that a run can be read and repeated without its version."""
    import yaml

    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def check_labels(config: RunConfig) -> None:
    """Refuse labels for the statistics that the trace will not keep, before hours of collecting.

    Raises
    ------
    MoeProbeError
        Naming the option that keeps the label.
    """
    for option, name in (("--by", config.by), ("--strata", config.strata)):
        if name is not None and name not in ("topic", "subtopic", "group", *config.label):
            raise MoeProbeError(f"{option} {name} names no label of the trace",
                                f"it keeps {', '.join(('topic', 'subtopic', *config.label))}", f"add --label {name}",
                                exit_code=2)
