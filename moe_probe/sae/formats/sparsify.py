"""SAEs of sparsify (EleutherAI).

Fields and formulas: eai-sparsify 1.3.3 (``config.py``, ``sparse_coder.py``, ``fused_encoder.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_probe.sae.formats.foreign import Fields, Parts, Refusal, Source
from moe_probe.sae.formats.tensors import Tensors, matrix_shape

_NO_TRANSCODER = "use a sparse autoencoder, no transcoder"

#: Fields of ``cfg.json``. ``normalize_decoder`` and ``multi_topk`` act while training only: the weights are loaded as they are.
FIELDS = Fields(
    read=frozenset({"activation", "k", "d_in", "num_latents", "expansion_factor"}),
    unused=frozenset({"normalize_decoder", "multi_topk"}),
    refused={
        "signed": Refusal("its latents can be negative", "use an SAE with signed false"),
        "transcode": Refusal("it maps one activation to another and reconstructs none", _NO_TRANSCODER),
        "skip_connection": Refusal("a linear map of the input is added to the reconstruction", _NO_TRANSCODER),
    },
)


def read(folder: Path, config: dict[str, Any], tensors: Tensors, allowed: tuple[str, ...] = ()) -> Parts:
    """Convert an SAE of sparsify: ``top-k of ReLU(W_enc (x - b_dec) + b_enc)``.

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
    source = Source(folder / "cfg.json", config, allowed)
    source.check_fields(FIELDS)
    activation = config.get("activation", "topk")  # configurations before the field had topk alone
    if activation != "topk":
        why = "one latent of each of k groups is active" if activation == "groupmax" else "it is unknown"
        raise source.refuse("activation", activation, f"{why}; topk is read", "use an SAE with activation topk")
    w_enc, b_enc, w_dec, b_dec = tensors.take("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    d_sae, d_in = matrix_shape(w_enc, "encoder.weight", tensors.path)
    tensors.shaped({"encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)})
    tensors.finish()
    factor = config.get("expansion_factor") or 0
    if not isinstance(factor, int | float):
        raise source.refuse("expansion_factor", factor, "a number is expected")
    latents = config.get("num_latents") or factor * d_in or d_sae
    source.check_sizes({"d_in": config.get("d_in", d_in), "num_latents": latents}, (d_in, d_sae))
    k = source.active_latents("k", config.get("k"), d_sae)
    return Parts("topk", w_enc, w_dec, b_enc, b_dec, k=k, notes=tuple(source.notes))
