"""Quantised checkpoints are recorded, identified with their scales, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import checkpoints

from moe_probe.core.errors import MoeProbeError
from moe_probe.models import find_moe_layers, fingerprint, load_model, self_check
from moe_probe.models.adapters.base import is_experts_input
from moe_probe.testing import tiny_moe


def checked(folder: Path) -> Any:
    """Load a checkpoint; what is recorded must be what ran, and the weights the same after a forward as before."""
    loaded = load_model(folder, device="cpu")
    self_check(loaded).raise_if_failed()
    assert fingerprint(loaded.model, loaded.sites) == loaded.info.fingerprint
    assert load_model(folder, device="cpu").info.fingerprint == loaded.info.fingerprint
    return loaded


def test_bitsandbytes_leaves_fused_experts_and_their_router_as_they_are(tmp_path: Path) -> None:
    loaded = checked(checkpoints.save_bitsandbytes("olmoe", tmp_path, bits=4))
    assert loaded.info.quantization == "bitsandbytes"
    plain = tiny_moe("olmoe")
    assert fingerprint(plain, find_moe_layers(plain)) == loaded.info.fingerprint
    assert loaded.info.n_parameters == plain.num_parameters()
    assert type(loaded.model.model.layers[0].self_attn.q_proj.weight).__name__ == "Params4bit"


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_quantises_lists_of_experts_whose_scales_count(tmp_path: Path, bits: int) -> None:
    loaded = checked(checkpoints.save_bitsandbytes("switch_transformers", tmp_path, bits=bits))
    weight = loaded.sites[0].experts["expert_0"].wi.weight
    assert weight.dtype in (torch.uint8, torch.int8)
    scales = weight.quant_state.absmax if bits == 4 else loaded.sites[0].experts["expert_0"].wi.state.SCB
    scales = scales if isinstance(scales, torch.Tensor) else weight.SCB
    scales.mul_(2)
    assert fingerprint(loaded.model, loaded.sites) != loaded.info.fingerprint


def test_codes_of_four_bits_run_as_they_are_stored_also_where_the_processor_has_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There bitsandbytes would write them anew in its first forward pass, and fail at layers as narrow as these."""
    import bitsandbytes.nn.modules as layers

    folder = checkpoints.save_bitsandbytes("olmoe", tmp_path, bits=4)
    monkeypatch.setattr(layers, "has_avx512bf16", lambda: True)
    checked(folder)


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors"])
def test_eight_bit_floats_run_dequantised_on_the_cpu_and_say_so(tmp_path: Path, method: str) -> None:
    loaded = checked(checkpoints.save_fp8(tmp_path, method=method))
    assert loaded.info.quantization == method and loaded.info.dtype == "bfloat16"
    assert {site.info.note for site in loaded.sites} == {f"stored as {method}, run dequantised"}
    plain = tiny_moe("qwen3_moe").get_parameter("model.layers.1.mlp.experts.down_proj")
    stored = loaded.model.get_parameter("model.layers.1.mlp.experts.down_proj")
    assert torch.allclose(stored.float(), plain, rtol=0.1, atol=2e-3) and not torch.equal(stored.float(), plain)


def test_mxfp4_runs_as_the_numbers_that_it_stands_for(tmp_path: Path) -> None:
    folder, first = checkpoints.save_mxfp4(tmp_path)
    loaded = checked(folder)
    weight = loaded.model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    assert torch.equal(weight.float(), first)
    assert {site.info.note for site in loaded.sites} == {"stored as mxfp4, run dequantised"}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_checkpoint_whose_library_is_missing_is_refused(tmp_path: Path, method: str) -> None:
    folder = checkpoints.quantised_as(
        checkpoints.save(tiny_moe("olmoe"), tmp_path), method, bits=4, group_size=32, zero_point=True, version="gemm"
    )
    with pytest.raises(MoeProbeError, match=r"need a package that is not installed: Loading an? .* requires") as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method, extra in (("fp8", "quantized"), ("compressed-tensors", "compressed")):
        folder = checkpoints.quantised_as(checkpoints.save(tiny_moe("olmoe"), tmp_path / method), method)
        monkeypatch.setattr("moe_probe.core.extras._found", lambda name: False)
        with pytest.raises(MoeProbeError, match=rf"pip install 'moe-probe\[{extra}\]'"):
            load_model(folder, device="cpu")


def test_eight_bit_experts_of_gpus_are_called_with_ids_and_weights() -> None:
    from transformers.integrations.finegrained_fp8 import FP8Experts

    assert is_experts_input(FP8Experts.__new__(FP8Experts))
