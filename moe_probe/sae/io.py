"""SAEs on disk: SAELens folders both ways; folders of sparsify and dictionary_learning read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_probe.errors import MoeProbeError
from moe_probe.sae.base import Sae
from moe_probe.sae.config import SaeConfig
from moe_probe.sae.registry import make_sae
from moe_probe.trace.files import disk_errors, write_whole

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
#: Written as jumprelu with one threshold, as SAELens does with what it trained by batches.
_BY_THRESHOLD = ("batchtopk", "matryoshka", "jumprelu")


def save_sae(sae: Sae, folder: str | Path, *, training: Mapping[str, Any] | None = None) -> Path:
    """Write an SAE as a SAELens (version 6) folder: ``cfg.json`` and ``sae_weights.safetensors``.

    The scale of the activations is folded into the weights, so that any reader encodes activations as the
    model has them.

    Parameters
    ----------
    training : mapping, optional
        What is to be remembered of how it was trained (JSON values), kept in the configuration's metadata.

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
        "W_enc": (sae.W_enc.detach().T / scale).contiguous(), "W_dec": (sae.W_dec.detach() * scale).contiguous(),
        "b_enc": sae.b_enc.detach().clone(), "b_dec": (sae.b_dec.detach() * scale).clone()}
    kind = config.architecture
    if kind in _BY_THRESHOLD:
        threshold = sae.threshold.detach()  # type: ignore[union-attr, operator]
        tensors["threshold"] = threshold.expand(config.d_sae).clone().contiguous()
    metadata = {"moe_probe": config.model_dump(mode="json"), "moe_probe_training": dict(training or {}),
                "sae_lens_version": "6.0.0", "model_name": config.model_id, "hook_name": f"{config.hook}.{config.layer}"}
    described: dict[str, Any] = {
        "architecture": "jumprelu" if kind in _BY_THRESHOLD else kind, "d_in": config.d_in, "d_sae": config.d_sae,
        "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none", "metadata": metadata}
    if kind == "topk":
        described |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    text = json.dumps(described, indent=1) + "\n"
    with disk_errors(folder):  # the configuration last: a folder counts as an SAE once it is there
        write_whole(folder / WEIGHTS, lambda p: save_file(tensors, p))
        write_whole(folder / CONFIG, lambda p: p.write_text(text, encoding="utf-8"))
    return folder


def read_training(folder: str | Path) -> dict[str, Any]:
    """What was remembered of an SAE's training; empty where nothing was."""
    metadata = _read_config(Path(folder) / CONFIG).get("metadata") or {}
    return dict(metadata.get("moe_probe_training") or {})


def read_trained_config(folder: str | Path) -> SaeConfig | None:
    """What an SAE was when it was trained; None where it was not trained here.

    `load_sae` gives what it is now: BatchTopK and Matryoshka are saved, as sae-lens does, as JumpReLU with one threshold, and
    no longer tell by themselves how another seed is to be trained, or which parts are nested.
    """
    own = (_read_config(Path(folder) / CONFIG).get("metadata") or {}).get("moe_probe")
    return SaeConfig.model_validate(own) if own else None


def load_sae(folder: str | Path, *, d_in: int | None = None, hook: str | None = None) -> Sae:
    """Read an SAE from a SAELens, sparsify or dictionary_learning folder.

    Parameters
    ----------
    folder : str or Path
    d_in : int, optional
        Width of the activations that it is meant for.
    hook : str, optional
        Where they come from, for SAEs that say where they were trained.

    Returns
    -------
    Sae
        In evaluation mode.

    Raises
    ------
    MoeProbeError
        When the folder holds no SAE that is known, it has another width or hook point, or a tensor is missing.
    """
    folder = Path(folder)
    for name, read in ((WEIGHTS, _saelens), ("sae.safetensors", _sparsify), ("ae.pt", _dictionary_learning)):
        if (folder / name).is_file():
            sae = read(folder)
            break
    else:
        held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise MoeProbeError(f"there is no SAE in {folder}", f"it holds {', '.join(held[:6])}" if held else "no such folder",
                            "a folder of SAELens, sparsify or dictionary_learning")
    if d_in is not None and sae.config.d_in != d_in:
        raise MoeProbeError(f"the SAE in {folder} takes activations of width {sae.config.d_in}",
                            f"these have width {d_in}", "an SAE of this model")
    made_here = sae.config.model_fingerprint or sae.config.model_id
    if hook is not None and made_here and sae.config.hook != hook:
        raise MoeProbeError(f"the SAE in {folder} was trained on {sae.config.hook}", f"these activations are {hook}",
                            f"--hook {sae.config.hook}")
    return sae.eval()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MoeProbeError(f"{path} cannot be read", str(error), "the folder as its program wrote it") from error
    if not isinstance(data, dict):
        raise MoeProbeError(f"{path} is not a configuration", "a JSON object is expected",
                            "the folder as its program wrote it")
    return data


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise MoeProbeError(f"{path} cannot be read", str(error), "download it again") from error


def _fill(sae: Sae, path: Path, tensors: dict[str, Tensor]) -> Sae:
    """Put decoder rows of any norm into an SAE; shapes are checked."""
    own = dict(sae.named_parameters()) | dict(sae.named_buffers())
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise MoeProbeError(f"{name} of {path} has the shape {tuple(value.shape)}",
                                f"the configuration asks for {tuple(own[name].shape)}", "files of one SAE")
        with torch.no_grad():
            own[name].copy_(value)
    return sae


def _need(tensors: dict[str, Tensor], names: tuple[str, ...], path: Path) -> list[Tensor]:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise MoeProbeError(f"{path} has no {', '.join(missing)}", f"it holds {', '.join(sorted(tensors))}",
                            "the folder as its program wrote it")
    return [tensors[name] for name in names]


def _saelens(folder: Path) -> Sae:
    config, tensors = _read_config(folder / CONFIG), _tensors(folder / WEIGHTS)
    kind = config.get("architecture", "standard")
    if kind not in ("standard", "topk", "jumprelu"):
        raise MoeProbeError(f"the SAE in {folder} is of architecture '{kind}'", "standard, topk and jumprelu are read",
                            "an SAE saved for inference")
    if config.get("normalize_activations", "none") not in ("none", None):
        raise MoeProbeError(f"the SAE in {folder} normalises activations by {config['normalize_activations']}",
                            "its weights do not say by how much", "an SAE with the normalisation folded in")
    w_enc, w_dec, b_enc, b_dec = _need(tensors, ("W_enc", "W_dec", "b_enc", "b_dec"), folder / WEIGHTS)
    if not config.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ w_enc  # the same encoder, written as one that takes b_dec away first
    own = (config.get("metadata") or {}).get("moe_probe") or {}
    made = {key: own[key] for key in ("hook", "layer", "experts", "model_fingerprint", "model_id", "seed") if key in own}
    shape = {"d_in": w_enc.shape[0], "d_sae": w_enc.shape[1]}
    if (config.get("d_in"), config.get("d_sae")) != (shape["d_in"], shape["d_sae"]):
        raise MoeProbeError(f"{folder / CONFIG} speaks of {config.get('d_in')} × {config.get('d_sae')}",
                            f"the weights are {shape['d_in']} × {shape['d_sae']}", "files of one SAE")
    sae = make_sae(SaeConfig.model_validate(
        {"architecture": kind, "k": int(config.get("k") or own.get("k") or 16), **shape, **made}))
    parts = {"W_enc": w_enc.T, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}
    if kind == "jumprelu":
        parts["log_threshold"] = _need(tensors, ("threshold",), folder / WEIGHTS)[0].clamp_min(1e-12).log()
    return _fill(sae, folder / WEIGHTS, parts)


def _sparsify(folder: Path) -> Sae:
    config, tensors = _read_config(folder / CONFIG), _tensors(folder / "sae.safetensors")
    if config.get("transcode") or config.get("skip_connection"):
        raise MoeProbeError(f"{folder} holds a transcoder", "it maps one activation to another and reconstructs none",
                            "a sparse autoencoder")
    w_enc, b_enc, w_dec, b_dec = _need(tensors, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"),
                                       folder / "sae.safetensors")
    sae = make_sae(SaeConfig(architecture="topk", d_in=w_enc.shape[1], d_sae=w_enc.shape[0], k=int(config["k"])))
    return _fill(sae, folder, {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec})


def _dictionary_learning(folder: Path) -> Sae:
    import pickle

    trainer = _read_config(folder / "config.json").get("trainer", {})
    try:
        # weights_only: tensors and plain containers, nothing that could run
        tensors = {k: v.float() for k, v in torch.load(folder / "ae.pt", map_location="cpu", weights_only=True).items()}
    except (pickle.UnpicklingError, RuntimeError, AttributeError) as error:
        raise MoeProbeError(f"{folder / 'ae.pt'} is refused", "it holds more than tensors, and loading it could run code",
                            "the file of weights alone") from error
    kind = str(trainer.get("dict_class", ""))
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        return _dictionary_by_threshold(folder, kind, tensors, trainer)
    if kind not in ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"):
        raise MoeProbeError(f"{folder} holds a '{kind}'", "AutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE "
                            "and JumpReluAutoEncoder are read", "one of these")
    bias = "bias" if kind == "AutoEncoder" else "b_dec"
    w_enc, b_enc, w_dec, b_dec = _need(tensors, ("encoder.weight", "encoder.bias", "decoder.weight", bias), folder / "ae.pt")
    parts = {"W_enc": w_enc, "W_dec": w_dec.T, "b_enc": b_enc, "b_dec": b_dec}
    shape: dict[str, Any] = {"d_in": w_enc.shape[1], "d_sae": w_enc.shape[0], "k": max(1, int(trainer.get("k") or 16))}
    if kind == "AutoEncoder":
        return _fill(make_sae(SaeConfig(architecture="standard", **shape)), folder, parts)
    if kind == "AutoEncoderTopK":
        return _fill(make_sae(SaeConfig(architecture="topk", **shape)), folder, parts)
    threshold = _need(tensors, ("threshold",), folder / "ae.pt")[0]
    parts["log_threshold"] = threshold.reshape(()).clamp_min(1e-12).log().expand(w_enc.shape[0])
    return _fill(make_sae(SaeConfig(architecture="jumprelu", **shape)), folder, parts)


def _dictionary_by_threshold(folder: Path, kind: str, tensors: dict[str, Tensor], trainer: dict[str, Any]) -> Sae:
    """The classes of dictionary_learning whose matrices are (d_in, d_sae) and (d_sae, d_in)."""
    w_enc, w_dec, b_enc, b_dec, threshold = _need(tensors, ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"), folder / "ae.pt")
    if kind == "JumpReluAutoEncoder":
        b_enc = b_enc + b_dec @ w_enc  # it does not take b_dec away first
    sae = make_sae(SaeConfig(architecture="jumprelu", d_in=w_enc.shape[0], d_sae=w_enc.shape[1],
                             k=max(1, int(trainer.get("k") or 16))))
    return _fill(sae, folder, {"W_enc": w_enc.T, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "log_threshold":
                               threshold.clamp_min(1e-12).log().expand(w_enc.shape[1])})
