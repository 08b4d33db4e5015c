"""A model without its weights: tokenizer and mixture-of-experts layers, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe.core.schema import ModelInfo, MoeLayer
from moe_probe.models.checkpoint import local_folder, max_length, model_class, read_config, read_tokenizer
from moe_probe.models.diagnose import explained
from moe_probe.models.discover import find_moe_layers
from moe_probe.models.network import hub_access

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class ModelOutline:
    """What is known of a model that runs elsewhere.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
    info : ModelInfo
        Without a fingerprint: no weights were read.
    layers : tuple of MoeLayer
        Its mixture-of-experts layers; empty where the installed transformers cannot build the model.
    n_hidden : int
        Layers of the text model, dense ones included; 0 where they are not known.
    max_length : int
        Longest text that model and tokenizer are made for, in tokens.
    unknown : str
        Why `layers` is empty.
    """

    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    layers: tuple[MoeLayer, ...]
    n_hidden: int
    max_length: int
    unknown: str = ""


def outline_model(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelOutline:
    """Read the configuration and the tokenizer of a checkpoint, and build the model without weights to find its layers.

    Parameters
    ----------
    name : str
        Folder with ``config.json`` and the tokenizer's files, or the name of a repository; weights are not read.
    revision : str, optional
        Branch, tag or commit of a repository.
    trust_remote_code : bool
        Run Python code that comes with the checkpoint.

    Returns
    -------
    ModelOutline

    Raises
    ------
    MoeProbeError
        When configuration or tokenizer are missing or cannot be read.
    """
    local = local_folder(name)
    source: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if local is None and revision is not None:
        source["revision"] = revision
    with hub_access(allowed=local is None or trust_remote_code):
        config, tokenizer = read_config(name, source), read_tokenizer(name, source)
        layers, n_parameters, unknown = _layers(config, trust_remote_code=trust_remote_code)
    with explained(name, part="configuration"):
        named = config.architectures
        n_hidden = getattr(config.get_text_config(), "num_hidden_layers", None)
        longest = max_length(config, tokenizer)
    info = ModelInfo(
        id=name,
        revision=getattr(config, "_commit_hash", None) or revision,
        architecture=str(named[0]) if isinstance(named, list) and named else "unknown",
        n_parameters=n_parameters,
    )
    n_hidden = n_hidden if isinstance(n_hidden, int) else 0
    return ModelOutline(tokenizer, info, layers, n_hidden, longest, unknown)


def _layers(config: PreTrainedConfig, *, trust_remote_code: bool) -> tuple[tuple[MoeLayer, ...], int | None, str]:
    """Layers and parameters of the model that a configuration describes, or why they are not known."""
    import torch

    try:
        cls = model_class(config, remote=trust_remote_code)
        auto = hasattr(cls, "from_config")  # an automatic class, where the configuration names none that is known
        with torch.device("meta"):  # shapes only: a model of 700 billion parameters takes no memory
            model = cls.from_config(config, trust_remote_code=trust_remote_code) if auto else cls._from_config(config)
        layers = tuple(site.info for site in find_moe_layers(model))
    except Exception as error:  # whatever transformers makes of the configuration: it is said, and the layers stay unknown
        return (), None, " ".join(str(error).split())[:200] or type(error).__name__
    return layers, sum(p.numel() for p in model.parameters()), ""
