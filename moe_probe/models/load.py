"""Load a model and its tokenizer, or say in one sentence why that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.extras import need_extra
from moe_probe.core.schema import DTYPES, ModelInfo
from moe_probe.models.adapters.base import MoeSite
from moe_probe.models.diagnose import explained
from moe_probe.models.discover import find_moe_layers
from moe_probe.models.identity import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

#: Context length in tokens where neither model nor tokenizer has one (models with relative positions).
_DEFAULT_LENGTH = 2048
_DTYPES = ("auto", *DTYPES)
_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForTokenClassification",
    "AutoModel",
)
#: Quantisations whose checkpoints transformers reads only with the package accelerate.
_NEED_ACCELERATE = (
    "aqlm awq bitnet bitsandbytes bitsandbytes_4bit bitsandbytes_8bit eetq fbgemm_fp8 fp8 higgs mxfp4 quanto spqr vptq"
)
#: Output heads: routing does not depend on them, so a checkpoint may lack them.
_HEADS = ("lm_head", "score", "classifier")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to be recorded.

    Attributes
    ----------
    model : PreTrainedModel
        In evaluation mode, on its device.
    tokenizer : PreTrainedTokenizerBase
        Of the same checkpoint.
    info : ModelInfo
        With the fingerprint of routers and experts.
    sites : tuple of MoeSite
        Its mixture-of-experts layers.
    max_length : int
        Longest text that model and tokenizer are made for, in tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    sites: tuple[MoeSite, ...]
    max_length: int


def load_model(  # noqa: PLR0913 - public API: keyword-only options with defaults
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    experts_implementation: str | None = None,
    progress: bool = True,
) -> LoadedModel:
    """Load a mixture-of-experts model of transformers from a folder or a hub.

    Only safetensors weights are read (pickle files can run code), and no code that comes with a
    checkpoint is run unless asked for.

    Parameters
    ----------
    name_or_path : str or Path
        Folder with ``config.json``, or a repository name such as ``allenai/OLMoE-1B-7B-0924``.
    revision : str, optional
        Branch, tag or commit of a repository.
    dtype : str
        ``auto`` (as stored), ``float32``, ``bfloat16``, ``float16`` or ``float64``.
    device : str
        ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto`` takes the first GPU if there is one.
    trust_remote_code : bool
        Run Python code that comes with the checkpoint.
    experts_implementation : str, optional
        How transformers computes experts (``eager``, ``grouped_mm``, ``batched_mm`` ...).
    progress : bool
        Let transformers show its progress bar.

    Returns
    -------
    LoadedModel

    Raises
    ------
    MoeProbeError
        If anything is missing, unreachable, unknown or dense; the message says what, and what to try.
    UsageError
        For an unknown type of weights, device or implementation of experts.
    """
    _check_options(dtype, experts_implementation)
    name = str(name_or_path)
    local = _local_folder(name)
    source: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if local is None and revision is not None:
        source["revision"] = revision
    target = _device(device)

    with explained(name, part="configuration"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(name, **source)
    if local is not None:
        _check_weights(local)
    quantization, options, note = _quantization(config)
    if quantization in _NEED_ACCELERATE.split():
        need_extra("quantized", f"checkpoints quantised as {quantization}")
    with explained(name, part="weights"), _progress_bar(shown=progress):
        model, report = _model_class(config, remote=trust_remote_code).from_pretrained(
            name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **({"experts_implementation": experts_implementation} if experts_implementation else {}),
            **options,
            **source,
        )
    _check_complete(name, report)
    model = model.eval().to(target)
    sites = tuple(find_moe_layers(model, note=note))
    tokenizer = _tokenizer(name, source)
    info = ModelInfo(
        id=name,
        revision=getattr(config, "_commit_hash", None) or revision,
        architecture=type(model).__name__,
        fingerprint=fingerprint(model, sites),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=quantization,
        n_parameters=sum(p.numel() for p in model.parameters()),
    )
    return LoadedModel(model, tokenizer, info, sites, _max_length(config, tokenizer))


@contextmanager
def _progress_bar(*, shown: bool) -> Iterator[None]:
    """Switch transformers' own progress bar, which is global, and put it back."""
    from transformers.utils import logging

    bars: Any = logging  # its functions have no types
    before = bars.is_progress_bar_enabled()
    if not (shown and sys.stderr.isatty()):  # its bar is made of carriage returns: not for a log
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            bars.enable_progress_bar()


def _check_options(dtype: str, experts_implementation: str | None) -> None:
    if dtype not in _DTYPES:
        raise UsageError(f"unknown type of weights '{dtype}'", did_you_mean(dtype, list(_DTYPES)))
    if experts_implementation is not None:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        choices = ["eager", *ALL_EXPERTS_FUNCTIONS.valid_keys()]
        if experts_implementation not in choices:
            raise UsageError(
                f"unknown implementation of experts '{experts_implementation}'",
                did_you_mean(experts_implementation, choices),
            )


def _local_folder(name: str) -> Path | None:
    """Return the folder that is meant, checked for its configuration; None where a repository is meant."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise MoeProbeError(f"{name} is a file", "a model is a folder with config.json", f"pass {folder.parent}")
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise MoeProbeError(f"there is no folder {name}", "it is not the name of a repository either", "check the path")
        return None
    if not (folder / "config.json").is_file():
        raise MoeProbeError(
            f"{name} has no config.json",
            "without it the kind of model is unknown",
            "pass the folder that model.save_pretrained wrote",
        )
    return folder


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    if pickled:
        raise MoeProbeError(
            f"{folder} has no safetensors weights",
            f"{pickled[0]} is a pickle file, which can run code when it is read",
            "convert it with model.save_pretrained on an isolated machine",
        )
    raise MoeProbeError(
        f"{folder} has no weights", "there is no *.safetensors file beside config.json", "finish the download or copy"
    )


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"unknown device '{device}'", "devices are cpu, cuda and cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise MoeProbeError(
            f"there is no device {device}", "torch finds no GPU", "device cpu (--device cpu, or in run.yaml)"
        )
    return device


def _quantization(config: PreTrainedConfig) -> tuple[str | None, dict[str, Any], str]:
    """Name of the quantisation, options to load it, and a note on it.

    MXFP4 kernels replace the whole block, so that no experts module is called with ids and weights:
    such checkpoints are loaded dequantised.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None, {}, ""
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    kind = str(getattr(method, "value", method))
    if kind != "mxfp4":
        return kind, {}, ""
    from transformers.utils.quantization_config import Mxfp4Config

    return kind, {"quantization_config": Mxfp4Config(dequantize=True)}, "stored as mxfp4, run dequantised"


def _model_class(config: PreTrainedConfig, *, remote: bool) -> Any:
    """Return the class that the checkpoint was saved from, else the first automatic class that knows its kind."""
    import transformers
    from transformers.models.auto import modeling_auto

    if not (remote and getattr(config, "auto_map", None)):
        for name in config.architectures or ():
            if (cls := getattr(transformers, name, None)) is not None:
                return cls
    for name in _AUTO_CLASSES[:-1]:
        if type(config) in getattr(modeling_auto, name)._model_mapping or name in (getattr(config, "auto_map", None) or {}):
            return getattr(transformers, name)
    return transformers.AutoModel


def _check_complete(name: str, report: dict[str, Any]) -> None:
    """Refuse a checkpoint that leaves layers random, of which transformers only warns."""
    missing = sorted(key for key in report.get("missing_keys", ()) if not key.startswith(_HEADS))
    if missing:
        raise MoeProbeError(
            f"the checkpoint {name} lacks {len(missing)} tensors",
            f"{missing[0]} and others would be random numbers",
            "finish the download, or check that config.json belongs to these weights",
        )


def _tokenizer(name: str, source: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer; without its files transformers returns one with an empty vocabulary."""
    with explained(name, part="tokenizer"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ValueError("its vocabulary is empty, as when the tokenizer's files are missing")
    return tokenizer


def _max_length(config: PreTrainedConfig, tokenizer: Any) -> int:
    text = config.get_text_config()
    lengths = [getattr(text, key, None) for key in ("max_position_embeddings", "n_positions", "max_seq_len")]
    lengths.append(getattr(tokenizer, "model_max_length", None))
    known = [int(n) for n in lengths if isinstance(n, (int, float)) and 0 < n < 10**9]
    return min(known) if known else _DEFAULT_LENGTH
