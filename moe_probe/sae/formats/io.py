"""SAEs on disk: SAELens folders are written and read, folders of sparsify and dictionary_learning are read."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.files import disk_errors, write_text, write_whole
from moe_probe.core.progress import Say
from moe_probe.core.text import printable
from moe_probe.core.untrusted import file_size, first_problem, open_tensors, read_json
from moe_probe.sae.architectures.base import Sae
from moe_probe.sae.architectures.registry import make_sae
from moe_probe.sae.config import SaeConfig
from moe_probe.sae.formats import dictionaries, saelens, sparsify
from moe_probe.sae.formats.foreign import Parts
from moe_probe.sae.formats.tensors import AS_WRITTEN, Tensors
from moe_probe.sae.training.record import TrainingRecord

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
#: Bytes of a configuration.
_MOST_CONFIG = 1 << 24
#: Written as jumprelu with one threshold, as SAELens does with what it trained by batches.
_BY_THRESHOLD = ("batchtopk", "matryoshka", "jumprelu")


def save_sae(sae: Sae, folder: str | Path, *, training: Mapping[str, Any] | None = None) -> Path:
    """Write an SAE as a SAELens (version 6) folder: ``cfg.json`` and ``sae_weights.safetensors``.

    The scale of the activations is folded into the weights, so that any reader encodes activations as the
    model has them.

    Parameters
    ----------
    sae : Sae
    folder : str or Path
    training : mapping, optional
        Record of its training (`TrainingRecord`; JSON values), written into the configuration's metadata.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    MoeProbeError
        When the disk refuses.
    """
    folder = Path(folder)
    config, scale = sae.config, sae.scale.detach()
    tensors = {
        "W_enc": (sae.W_enc.detach().T / scale).contiguous(),
        "W_dec": (sae.W_dec.detach() * scale).contiguous(),
        "b_enc": sae.b_enc.detach().clone(),
        "b_dec": (sae.b_dec.detach() * scale).clone(),
    }
    kind = config.architecture
    if kind in _BY_THRESHOLD:
        threshold: Any = sae.threshold
        tensors["threshold"] = threshold.detach().expand(config.d_sae).clone().contiguous()
    metadata = {
        "moe_probe": config.model_dump(mode="json"),
        "moe_probe_training": dict(training or {}),
        "sae_lens_version": "6.0.0",
        "model_name": config.model_id,
        "hook_name": f"{config.hook}.{config.layer}",
    }
    described: dict[str, Any] = {
        "architecture": "jumprelu" if kind in _BY_THRESHOLD else kind,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if kind == "topk":
        described |= {"k": min(config.k, config.d_sae), "rescale_acts_by_decoder_norm": False}
    text = json.dumps(described, indent=1) + "\n"
    with disk_errors(folder):  # the configuration last: a folder counts as an SAE once it is there
        write_whole(folder / WEIGHTS, lambda p: save_file(tensors, p))
        write_text(folder / CONFIG, text)
    return folder


def read_training(folder: str | Path) -> TrainingRecord:
    """Read what the folder of an SAE records of its training; the record is empty where it was trained elsewhere."""
    metadata = _read_config(Path(folder) / CONFIG).get("metadata")
    record = metadata.get("moe_probe_training") if isinstance(metadata, dict) else None
    return TrainingRecord(record if isinstance(record, dict) else {})


def read_trained_config(folder: str | Path) -> SaeConfig | None:
    """Read the configuration with which an SAE was trained; None where it was not trained here.

    `load_sae` gives its configuration at inference: BatchTopK and Matryoshka are saved, as SAELens does, as JumpReLU with
    one threshold, which does not determine how to train another seed, or which parts are nested.
    """
    path = Path(folder) / CONFIG
    own = _own_config(_read_config(path))
    try:
        return SaeConfig.model_validate(own) if own else None
    except ValidationError as error:
        raise MoeProbeError(f"{path} has no valid metadata.moe_probe", first_problem(error), AS_WRITTEN) from error


def load_sae(
    folder: str | Path,
    *,
    d_in: int | None = None,
    hook: str | None = None,
    ignore_fields: Sequence[str] = (),
    say: Say | None = None,
) -> Sae:
    """Read an SAE from a SAELens, sparsify or dictionary_learning folder.

    Parameters
    ----------
    folder : str or Path
    d_in : int, optional
        Width of the activations that it shall read.
    hook : str, optional
        Their activation site, for SAEs whose configuration names one.
    ignore_fields : sequence of str
        Unknown fields of its configuration that do not change what it computes.
    say : callable, optional
        Called with each sentence that a person should read about the configuration.

    Returns
    -------
    Sae
        In evaluation mode.

    Raises
    ------
    MoeProbeError
        When the folder has no SAE of a known format, the SAE has another width or activation site, a tensor is missing,
        unknown or misshapen, or its configuration needs something that is not reproduced here.
    """
    folder = Path(folder)
    for name, reads in ((WEIGHTS, saelens.read), ("sae.safetensors", sparsify.read), ("ae.pt", dictionaries.read)):
        if (folder / name).is_file():
            pickled = name.endswith(".pt")
            config = _read_config(folder / ("config.json" if pickled else CONFIG))
            tensors = _pickled(folder / name) if pickled else _tensors(folder / name)
            parts = reads(folder, config, Tensors(folder / name, tensors), tuple(ignore_fields))
            break
    else:
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise MoeProbeError(
            f"there is no SAE in {folder}",
            f"it has {', '.join(names[:6])}" if names else "no such folder",
            "pass a folder of SAELens, sparsify or dictionary_learning",
        )
    sae = _assembled(parts, _own_config(config) or {}, folder / CONFIG)
    if d_in is not None and sae.config.d_in != d_in:
        raise MoeProbeError(
            f"the SAE in {folder} takes activations of width {sae.config.d_in}",
            f"these have width {d_in}",
            "use an SAE of this model",
        )
    made_here = sae.config.model_fingerprint or sae.config.model_id
    if hook is not None and made_here and sae.config.hook != hook:
        raise MoeProbeError(
            f"the SAE in {folder} was trained on {sae.config.hook}",
            f"these activations are {hook}",
            f"pass --hook {sae.config.hook}",
        )
    if say is not None:
        for note in parts.notes:
            say(note)
    return sae.eval()


def _own_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the configuration that this package wrote into a SAELens configuration; None where it wrote none."""
    metadata = config.get("metadata")
    own = metadata.get("moe_probe") if isinstance(metadata, dict) else None
    return own if isinstance(own, dict) and own else None


def _read_config(path: Path) -> dict[str, Any]:
    data = read_json(path, most=_MOST_CONFIG, hint=AS_WRITTEN)
    if not isinstance(data, dict):
        raise MoeProbeError(f"{path} is not a configuration", "a JSON object is expected", AS_WRITTEN)
    return data


def _tensors(path: Path) -> dict[str, Tensor]:
    with open_tensors(path, framework="pt", hint="download it again") as file:
        return {name: _float32(file.tensor(name), name, path) for name in sorted(file.names)}


def _float32(tensor: Tensor, name: str, path: Path) -> Tensor:
    try:
        if not tensor.is_complex():
            return tensor.float()
    except (NotImplementedError, RuntimeError):  # packed types have no conversion
        pass
    raise MoeProbeError(
        f"{printable(name)} of {path} has the type {tensor.dtype}",
        "it cannot be read as float32",
        "use weights in float32, bfloat16 or float16",
    )


def _pickled(path: Path) -> dict[str, Tensor]:
    """Read a pickle that has tensors and nothing else: nothing in it is run."""
    import pickle

    _check_packed(path, file_size(path, hint="download it again"))
    try:  # weights_only: tensors and plain containers, nothing that could run
        read = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        IndexError,
        KeyError,
        TypeError,
        AssertionError,
        struct.error,
    ) as error:
        raise MoeProbeError(
            f"{path} cannot be read", error_text(str(error).partition("\n")[0]), "download it again"
        ) from error
    except (pickle.UnpicklingError, AttributeError) as error:
        raise MoeProbeError(
            f"{path} is refused", "it has more than tensors, and loading it could run code", "use a file of weights alone"
        ) from error
    if not isinstance(read, Mapping) or not all(isinstance(v, Tensor) for v in read.values()):
        raise MoeProbeError(f"{path} is refused", "it has more than tensors by name", "use a file of weights alone")
    for tensor in read.values():  # a view can show one number a billion times
        if tensor.is_sparse or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise MoeProbeError(
                f"{path} cannot be read", "a tensor is larger than what is stored of it", "download it again"
            )
    return {str(name): _float32(tensor, str(name), path) for name, tensor in read.items()}


def _check_packed(path: Path, size: int) -> None:
    """Refuse an archive that would grow: weights are stored as they are."""
    if not zipfile.is_zipfile(path):
        return  # written by torch before 1.6
    try:
        with zipfile.ZipFile(path) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise MoeProbeError(f"{path} cannot be read", error_text(error), "download it again") from error
    if whole > size:
        raise MoeProbeError(f"{path} cannot be read", f"it unpacks to {whole:,} bytes, from {size:,}", "download it again")


def _assembled(parts: Parts, own: Mapping[str, Any], path: Path) -> Sae:
    """Build an `Sae`; its decoder rows may have any norm."""
    d_sae, d_in = parts.W_enc.shape
    described = {
        key: own[key] for key in ("hook", "layer", "experts", "model_fingerprint", "model_id", "seed") if key in own
    }
    k, trained_k = parts.k, own.get("k")
    if isinstance(trained_k, int) and k in (None, min(trained_k, d_sae)):
        k = trained_k  # as requested in training: an SAE can have fewer latents than that
    if k is not None:
        described["k"] = k
    try:
        sae = make_sae(SaeConfig(architecture=parts.architecture, d_in=d_in, d_sae=d_sae, **described))
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise MoeProbeError(
            f"{path} has no valid {field} in metadata.moe_probe", error.errors()[0]["msg"], AS_WRITTEN
        ) from error
    values = {"W_enc": parts.W_enc, "W_dec": parts.W_dec, "b_enc": parts.b_enc, "b_dec": parts.b_dec}
    if parts.threshold is not None:  # below 0 it lets through what ReLU does, as a threshold of nearly 0
        values["log_threshold"] = parts.threshold.clamp_min(1e-12).log()
    parameters = dict(sae.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return sae
