"""Checkpoints of tiny models, plain and quantised as published ones are, written where a test needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from moe_probe.testing import tiny_moe

#: The sixteen numbers of the 4-bit type of the MX formats (OCP Microscaling Formats 1.0, E2M1).
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def word_tokenizer(n: int = 96) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", unk_token="w3")


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_fp8(folder: Path, *, method: str) -> Path:
    """Qwen3-MoE in 8 bits: one scale per block (``fp8``) or per row (``compressed-tensors``)."""
    from safetensors.torch import load_file, save_file

    save(tiny_moe("qwen3_moe").bfloat16(), folder)
    suffix = "_scale_inv" if method == "fp8" else "_scale"
    out = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        out[name] = weight
        if weight.ndim == 2 and "proj" in name:
            largest = weight.float().abs().amax((0, 1) if method == "fp8" else 1, keepdim=True)
            scale = (largest / 448).reshape(-1, 1)
            out[name], out[name + suffix] = (weight.float() / scale).to(torch.float8_e4m3fn), scale
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    if method == "fp8":
        settings: dict[str, Any] = {"weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}
        settings["activation_scheme"] = "dynamic"
    else:
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
        inputs = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
        settings = {"format": "float-quantized", "quantization_status": "compressed", "ignore": ["lm_head"]}
        settings["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return quantised_as(folder, method, **settings)


def save_mxfp4(folder: Path) -> tuple[Path, torch.Tensor]:
    """gpt-oss in 4 bits with one exponent per 32 numbers, and the first layer's gate and up weights as they are meant."""
    from safetensors.torch import load_file, save_file

    config: Any = tiny_moe("gpt_oss").config
    config.intermediate_size = 64
    torch.manual_seed(0)
    save(transformers.GptOssForCausalLM(config).bfloat16(), folder)
    out, generator = {}, torch.Generator().manual_seed(0)
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            n, d_in, d_out = weight.shape
            codes = torch.randint(0, 16, (n, d_out, d_in // 32, 32), generator=generator, dtype=torch.uint8)
            out[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
            scales = torch.randint(121, 124, (n, d_out, d_in // 32), generator=generator, dtype=torch.uint8)
            out[f"{name}_scales"] = scales
            if name == "model.layers.0.mlp.experts.gate_up_proj":
                meant = FP4[codes.long()] * 2.0 ** (scales.float() - 127)[..., None]
                first = meant.reshape(n, d_out, d_in).transpose(1, 2)
        else:
            out[name] = weight
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    return quantised_as(folder, "mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"]), first


def save_bitsandbytes(family: str, folder: Path, *, bits: int) -> Path:
    plain = save(tiny_moe(family), folder / "plain")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    settings = transformers.BitsAndBytesConfig(**(four if bits == 4 else {"load_in_8bit": True}))
    cls = type(tiny_moe(family))
    return save(cls.from_pretrained(plain, quantization_config=settings, device_map="cpu"), folder / "quantised")


def quantised_as(folder: Path, method: str, **settings: Any) -> Path:
    """Say in config.json how a checkpoint is quantised."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": method, **settings}}
    path.write_text(json.dumps(config))
    return folder
