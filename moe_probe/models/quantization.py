"""Quantised checkpoints: how each kind is loaded, and what that needs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from moe_probe.core.extras import need_extra

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Quantisations whose checkpoints transformers reads only with the package accelerate.
_NEED_ACCELERATE = (
    "aqlm awq bitnet bitsandbytes bitsandbytes_4bit bitsandbytes_8bit eetq fbgemm_fp8 fp8 higgs mxfp4 quanto spqr vptq"
)
#: Those that are dequantised while they are loaded.
_DEQUANTISED = ("mxfp4", "compressed-tensors")


def prepare_quantized(config: PreTrainedConfig) -> str | None:
    """Name the quantisation of a checkpoint, and choose how it is loaded.

    MXFP4 kernels replace the whole block, so that no experts module is called with ids and weights: such checkpoints
    are loaded dequantised. So are those of compressed-tensors, which would otherwise be dequantised by the first forward
    pass: the weights that are identified would not be those that run.

    Parameters
    ----------
    config : PreTrainedConfig
        Its settings of the quantisation are changed accordingly.

    Returns
    -------
    str or None
        None where the checkpoint is not quantised.

    Raises
    ------
    MoeProbeError
        Where a package is missing.
    """
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    named = isinstance(settings, dict)
    method = settings.get("quant_method") if named else getattr(settings, "quant_method", None)
    kind = str(getattr(method, "value", method))
    if kind in _NEED_ACCELERATE.split():
        need_extra("quantized", f"checkpoints quantised as {kind}")
    if kind == "compressed-tensors":
        need_extra("compressed", f"checkpoints quantised as {kind}")
    if kind in _DEQUANTISED:
        if named:
            config.quantization_config = {**settings, "dequantize": True}
        else:
            settings.dequantize = True
    if kind == "bitsandbytes":  # it says in every forward pass of every layer that inputs are cast to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return kind


def keep_stored_codes(model: PreTrainedModel) -> None:
    """Let bitsandbytes compute with the codes as they are stored.

    On processors with bfloat16 instructions its first forward pass writes the codes of 4 bits anew, in another order: what runs
    would not be what was identified. Inputs narrower than a block of codes end in an error there.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place; other models are left as they are.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (for type checkers all of a module are tensors)


def quantization_note(model: PreTrainedModel, kind: str | None) -> str:
    """Note that weights were dequantised while they were loaded, as transformers also does where the hardware lacks the type.

    Parameters
    ----------
    model : PreTrainedModel
    kind : str or None
        What the checkpoint was stored as.

    Returns
    -------
    str
        "" where they were not.
    """
    return f"stored as {kind}, run dequantised" if kind and getattr(model, "hf_quantizer", None) is None else ""
