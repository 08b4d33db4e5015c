"""The files of a checkpoint beside its weights: configuration, class, tokenizer, and whether all of it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.untrusted import read_json
from moe_probe.models.config_check import check_local
from moe_probe.models.diagnose import explained

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

#: Context length in tokens where neither model nor tokenizer has one (models with relative positions).
_DEFAULT_LENGTH = 2048
_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForTokenClassification",
    "AutoModel",
)


def read_config(name: str, source: dict[str, Any]) -> PreTrainedConfig:
    """Read the configuration of a checkpoint.

    Parameters
    ----------
    name : str
        Folder or repository.
    source : dict
        Further arguments of ``from_pretrained``: revision, and whether its own code may run.

    Returns
    -------
    PreTrainedConfig

    Raises
    ------
    MoeProbeError
        When it is missing or cannot be read, or names code of a hub that nobody allowed.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_local(folder)
    with explained(name, part="configuration"):
        from transformers import AutoConfig

        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **source)
    if not source.get("trust_remote_code"):
        _refuse_kernels(name, config)
    _refuse_other_weights(name, config)
    return config


def _refuse_other_weights(name: str, config: PreTrainedConfig) -> None:
    """Refuse a file of weights that a configuration names, where it is pickled or `check_weights` would not see its index."""
    file = getattr(config, "transformers_weights", None)
    if file is not None and (Path(str(file)).name != file or not file.endswith((".safetensors", ".safetensors.index.json"))):
        raise MoeProbeError(
            f"the config.json of {name} names weights that are not read",
            f"its transformers_weights is '{file}', no safetensors file of the folder",
            "a checkpoint that model.save_pretrained wrote",
        )


def _refuse_kernels(name: str, config: PreTrainedConfig) -> None:
    """Refuse code of a hub that a configuration names as its way of computing attention or experts."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", ()))]
    for field in ("_attn_implementation", "_experts_implementation"):
        for part in parts:
            if "/" in str(getattr(part, field, None) or ""):
                raise MoeProbeError(
                    f"{name} asks for compiled code of a hub",
                    f"its config.json sets {field[1:]} to {getattr(part, field)}",
                    f"remove {field[1:]} from config.json, or pass --trust-remote-code, if you trust its authors",
                )


def local_folder(name: str) -> Path | None:
    """Return the folder that a name means, checked for its configuration.

    Parameters
    ----------
    name : str

    Returns
    -------
    Path or None
        None where the name is that of a repository.

    Raises
    ------
    MoeProbeError
        When there is no such folder, or no configuration in it.
    """
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


def check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors weights.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    MoeProbeError
        When it has none, or pickle files only, or when its index names anything but safetensors files of the folder.
    """
    _check_index(folder)
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


def _check_index(folder: Path) -> None:
    """Refuse an index of weights that leads out of its folder, or to pickle files: transformers opens what it names."""
    for index in sorted(folder.glob("*.index.json")):
        read = read_json(index, hint="finish the download or copy")
        files = read.get("weight_map") if isinstance(read, dict) else None
        for file in sorted({str(f) for f in files.values()} if isinstance(files, dict) else ()):
            if "/" in file or "\\" in file or (".safetensors" in index.name and not file.endswith(".safetensors")):
                raise MoeProbeError(
                    f"{index} names a file that is not read",
                    f"'{file}' is no safetensors file of the folder",
                    "a checkpoint that model.save_pretrained wrote",
                )


def model_class(config: PreTrainedConfig, *, remote: bool) -> Any:
    """Return the class that a checkpoint was saved from, else the first automatic class that knows its kind.

    Parameters
    ----------
    config : PreTrainedConfig
    remote : bool
        Whether code that comes with the checkpoint may be its class.

    Returns
    -------
    type
    """
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


def read_tokenizer(name: str, source: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; without its files transformers returns one with an empty vocabulary.

    Parameters
    ----------
    name : str
        Folder or repository.
    source : dict
        As for `read_config`.

    Returns
    -------
    PreTrainedTokenizerBase

    Raises
    ------
    MoeProbeError
        When it is missing, empty or cannot be read.
    """
    with explained(name, part="tokenizer"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ValueError("its vocabulary is empty, as when the tokenizer's files are missing")
    return tokenizer


def max_length(config: PreTrainedConfig, tokenizer: Any) -> int:
    """Return the longest text that model and tokenizer are made for, in tokens.

    Parameters
    ----------
    config : PreTrainedConfig
    tokenizer : PreTrainedTokenizerBase

    Returns
    -------
    int
    """
    text = config.get_text_config()
    lengths = [getattr(text, key, None) for key in ("max_position_embeddings", "n_positions", "max_seq_len")]
    lengths.append(getattr(tokenizer, "model_max_length", None))
    known = [int(n) for n in lengths if isinstance(n, (int, float)) and 0 < n < 10**9]
    return min(known) if known else _DEFAULT_LENGTH
