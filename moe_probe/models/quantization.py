"""Quantised checkpoints: how each kind is loaded, and what that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moe_probe.core.extras import need_extra

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Quantisations whose checkpoints transformers reads only with the package accelerate.
_NEED_ACCELERATE = (
    "aqlm awq bitnet bitsandbytes bitsandbytes_4bit bitsandbytes_8bit eetq fbgemm_fp8 fp8 higgs mxfp4 quanto spqr vptq"
)


def dequantised(model: Any, quantization: str | None) -> str:
    """Note that weights were dequantised while they were loaded, as transformers does where the hardware lacks the type.

    Parameters
    ----------
    model : PreTrainedModel
    quantization : str or None
        What the checkpoint was stored as.

    Returns
    -------
    str
        "" where they were not.
    """
    settings = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    return f"stored as {quantization}, run dequantised" if getattr(settings, "dequantize", False) else ""


def quantization_of(config: PreTrainedConfig) -> tuple[str | None, dict[str, Any], str]:
    """Name of the quantisation, options to load it, and a note on it.

    MXFP4 kernels replace the whole block, so that no experts module is called with ids and weights: such checkpoints
    are loaded dequantised. So are those of compressed-tensors, which would otherwise be dequantised by the first forward
    pass: the weights that are identified would not be those that run.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None, {}, ""
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    kind = str(getattr(method, "value", method))
    if kind in _NEED_ACCELERATE.split():
        need_extra("quantized", f"checkpoints quantised as {kind}")
    if kind == "mxfp4":
        from transformers.utils.quantization_config import Mxfp4Config

        return kind, {"quantization_config": Mxfp4Config(dequantize=True)}, "stored as mxfp4, run dequantised"
    if kind == "compressed-tensors":
        need_extra("compressed", "checkpoints quantised as compressed-tensors")
        from transformers.utils.quantization_config import CompressedTensorsConfig

        return kind, {"quantization_config": CompressedTensorsConfig(dequantize=True)}, f"stored as {kind}, run dequantised"
    return kind, {}, ""
