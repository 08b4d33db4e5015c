"""SAEs of dictionary_learning.

Fields and formulas: dictionary-learning 0.1.0 (``dictionary.py``, ``trainers/``, ``buffer.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import printable
from moe_probe.sae.formats.foreign import Fields, Parts, Refusal, Source, gated_as_jumprelu
from moe_probe.sae.formats.tensors import AS_WRITTEN, ONE_SAE, Tensors, matrix_shape

_TRAINING = (
    "anneal_end anneal_start aux_k_alpha auxk_alpha bandwidth ctx_len d_submodule dead_feature_threshold decay_start device "
    "group_fractions group_sizes group_weights initial_sparsity_penalty l1_penalty layer lm_name lr n_ctxs n_sparsity_updates "
    "norm_factor out_batch_size p_end p_start refresh_batch_size resample_steps seed sparsity_function sparsity_penalty "
    "sparsity_queue_length sparsity_warmup_steps steps submodule_name target_l0 threshold_beta threshold_start_step top_k_aux "
    "trainer_class wandb_name warmup_steps"
)

#: Fields of ``trainer`` in ``config.json``. ``norm_factor`` is in the saved biases and thresholds already (``trainSAE``).
FIELDS = Fields(
    read=frozenset({"dict_class", "k", "activation_dim", "dict_size"}), unused=frozenset(_TRAINING.split()), refused={}
)
#: Fields of ``buffer``, and those beside ``trainer``.
BUFFER = Fields(
    read=frozenset(),
    unused=FIELDS.unused,
    refused={"io": Refusal("it maps one activation to another", "use a sparse autoencoder, no transcoder", ("in", "out"))},
)
_TOP = Fields(read=frozenset({"trainer", "buffer"}), unused=frozenset(), refused={})


def read(folder: Path, config: dict[str, Any], tensors: Tensors, allowed: tuple[str, ...] = ()) -> Parts:
    """Convert an SAE of dictionary_learning.

    Parameters
    ----------
    folder : Path
    config : dict
        Its configuration.
    tensors : Tensors
        Its weights.
    allowed : tuple of str
        Unknown fields of the configuration that the user has declared harmless.

    Returns
    -------
    Parts

    Raises
    ------
    MoeProbeError
        When its configuration asks for something that is not reproduced here, or a tensor is missing, unknown or misshapen.
    """
    source = Source(folder / "config.json", config, allowed)
    trainer, buffer = config.get("trainer"), config.get("buffer") or {}
    if not isinstance(trainer, dict) or not isinstance(buffer, dict):
        raise MoeProbeError(f"{source.path} has no trainer", "it names the class of the SAE", AS_WRITTEN)
    for fields, part in ((_TOP, config), (FIELDS, trainer), (BUFFER, buffer)):
        source.check_fields(fields, part)
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in _READERS:
        raise source.refuse("dict_class", kind, f"{', '.join(_READERS)} are read", "use an SAE of one of these classes")
    parts = _READERS[kind](replace(source, config=trainer), tensors)
    tensors.finish()
    d_sae, d_in = parts.W_enc.shape
    stated = {"activation_dim": trainer.get("activation_dim", d_in), "dict_size": trainer.get("dict_size", d_sae)}
    source.check_sizes(stated, (d_in, d_sae))
    if trainer.get("submodule_name"):
        source.notes.append(
            f"{source.path.name} says that the SAE was trained at {printable(str(trainer['submodule_name']))}"
            + (f" of {printable(str(trainer['lm_name']))}" if trainer.get("lm_name") else "")
        )
    return parts.with_notes(source.notes)


def _linear(tensors: Tensors, b_dec_name: str, *, b_enc: bool = True) -> Parts:
    """Classes whose matrices are those of `torch.nn.Linear`: (dict_size, activation_dim) and transposed."""
    w_enc, w_dec, b_dec = tensors.take("encoder.weight", "decoder.weight", b_dec_name)
    d_sae, d_in = matrix_shape(w_enc, "encoder.weight", tensors.path)
    tensors.shaped({"decoder.weight": (d_in, d_sae), b_dec_name: (d_in,)})
    bias = torch.zeros(d_sae)
    if b_enc:
        (bias,) = tensors.take("encoder.bias")
        tensors.shaped({"encoder.bias": (d_sae,)})
    return Parts("standard", w_enc, w_dec.T, bias, b_dec)


def _standard(_source: Source, tensors: Tensors) -> Parts:
    """``ReLU(W (x - bias) + b)``; loading brings decoder columns to norm 1 (`AutoEncoder.from_pretrained`)."""
    parts = _linear(tensors, "bias")
    norms = parts.W_dec.norm(dim=1)
    return parts if torch.allclose(norms, torch.ones_like(norms)) else parts.with_unit_decoder()


def _april(_source: Source, tensors: Tensors) -> Parts:
    """``ReLU(W x + b)``: the bias of the decoder is not taken away first."""
    return _linear(tensors, "decoder.bias").input_without_bias()


def _gated(_source: Source, tensors: Tensors) -> Parts:
    parts = _linear(tensors, "decoder_bias", b_enc=False)
    gate, magnitude, r_mag = tensors.take("gate_bias", "mag_bias", "r_mag")
    tensors.shaped(dict.fromkeys(("gate_bias", "mag_bias", "r_mag"), (len(parts.b_enc),)))
    encoder, bias, threshold = gated_as_jumprelu(parts.W_enc, (gate, magnitude), r_mag)
    return replace(parts, architecture="jumprelu", W_enc=encoder, b_enc=bias, threshold=threshold)


def _topk(source: Source, tensors: Tensors) -> Parts:
    """Top-k of each token; the threshold that is kept beside it is for other uses than `encode`."""
    tensors.drop("threshold")
    parts = _linear(tensors, "b_dec")
    return replace(parts, architecture="topk", k=_k(source, tensors, len(parts.b_enc)))


def _batch_topk(source: Source, tensors: Tensors) -> Parts:
    return _by_threshold(source, tensors, _linear(tensors, "b_dec"))


def _matryoshka(source: Source, tensors: Tensors) -> Parts:
    """All groups are used; their sizes matter while training."""
    tensors.drop("group_sizes")
    return _by_threshold(source, tensors, _plain_matrices(tensors))


def _jumprelu(_source: Source, tensors: Tensors) -> Parts:
    """``pre = W x + b``: the bias of the decoder is not taken away first."""
    parts = _plain_matrices(tensors)
    (threshold,) = tensors.take("threshold")
    tensors.shaped({"threshold": (len(parts.b_enc),)})
    return replace(parts.input_without_bias(), architecture="jumprelu", threshold=threshold)


def _plain_matrices(tensors: Tensors) -> Parts:
    """Classes whose matrices are (activation_dim, dict_size) and (dict_size, activation_dim)."""
    w_enc, w_dec, b_enc, b_dec = tensors.take("W_enc", "W_dec", "b_enc", "b_dec")
    d_in, d_sae = matrix_shape(w_enc, "W_enc", tensors.path)
    tensors.shaped({"W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)})
    return Parts("standard", w_enc.T, w_dec, b_enc, b_dec)


def _by_threshold(source: Source, tensors: Tensors, parts: Parts) -> Parts:
    """One threshold for all latents, which the classes trained by batches use at inference."""
    (threshold,) = tensors.take("threshold")
    tensors.shaped({"threshold": ()})
    if float(threshold) < 0:
        source.notes.append(
            f"the threshold is {float(threshold):g}: the training never set it, and as in dictionary_learning "
            "every positive latent is active"
        )
    d_sae = len(parts.b_enc)
    k = None if source.config.get("k") is None and "k" not in tensors else _k(source, tensors, d_sae)
    return replace(parts, architecture="jumprelu", threshold=threshold.expand(d_sae), k=k)


def _k(source: Source, tensors: Tensors, d_sae: int) -> int:
    """Read k of the configuration, or as saved with the weights; the library refuses a folder where they differ."""
    stated, saved = source.config.get("k"), None
    if "k" in tensors:
        (tensor,) = tensors.take("k")
        tensors.shaped({"k": ()})
        saved = float(tensor)
    if stated is not None and saved is not None and stated != saved:
        raise source.refuse("k", stated, f"{tensors.path.name} has k {saved:g}", ONE_SAE)
    return source.active_latents("k", saved if stated is None else stated, d_sae)


_READERS: dict[str, Callable[[Source, Tensors], Parts]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _april,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}
