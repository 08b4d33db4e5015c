"""Weights and tokenizers are recognised by what they hold."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
import transformers
from blake3 import blake3

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import ModelInfo, need_same_weights
from moe_probe.models import LoadedModel, find_moe_layers, fingerprint, tokenizer_hash
from moe_probe.testing import tiny_moe


@pytest.fixture(scope="module")
def olmoe() -> Any:
    return tiny_moe("olmoe")


def word_tokenizer(n: int = 96) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", unk_token="w3")


def test_fingerprint_follows_routers_and_experts_only() -> None:
    model = tiny_moe("deepseek_v3")
    sites = find_moe_layers(model)
    first = fingerprint(model, sites)
    again = tiny_moe("deepseek_v3")
    assert first == fingerprint(again, find_moe_layers(again))
    with pytest.raises(MoeProbeError, match="belong to another model"):
        fingerprint(again, sites)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
        assert fingerprint(model, sites) == first
        model.model.layers[2].mlp.experts.down_proj[0, 0, 0] += 1
        second = fingerprint(model, sites)
        model.model.layers[2].mlp.gate.e_score_correction_bias[0] += 1
        third = fingerprint(model, sites)
    assert len({first, second, third}) == 3
    assert fingerprint(model.bfloat16(), sites) != third


def test_fingerprint_sees_biases_kept_by_the_block() -> None:
    model = tiny_moe("afmoe")
    first = fingerprint(model, find_moe_layers(model))
    with torch.no_grad():
        model.model.layers[1].mlp.expert_bias[0] += 1
    assert fingerprint(model, find_moe_layers(model)) != first


def test_fingerprint_depends_neither_on_threads_nor_on_their_order(olmoe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = find_moe_layers(olmoe)
    assert len({fingerprint(olmoe, sites, threads=threads) for threads in (1, 2, 5)}) == 1
    monkeypatch.setattr("moe_probe.models.identity.BLOCK_BYTES", 100)  # many blocks, of which some end early
    assert len({fingerprint(olmoe, sites, threads=threads) for threads in (1, 2, 5)}) == 1


def test_fingerprint_is_a_hash_of_the_hashes_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.models.identity.BLOCK_BYTES", 64)
    model = tiny_moe("mixtral")
    sites = find_moe_layers(model)[:1]
    prefix, root = "model.layers.0.mlp.", blake3()
    owned = {n: p for n, p in model.named_parameters() if n.startswith((f"{prefix}gate.", f"{prefix}experts."))}
    for name, parameter in sorted(owned.items()):
        data = parameter.detach().numpy().tobytes()
        root.update(f"{name}|{tuple(parameter.shape)}|{parameter.dtype}|".encode())
        for start in range(0, len(data), 64):
            root.update(blake3(data[start : start + 64]).digest())
    assert fingerprint(model, sites) == f"{root.hexdigest()}-t1"


def one_hash_over_all(model: Any, sites: Any) -> str:
    """Fingerprint as it was computed before there were schemes, written anew."""
    tensors: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256()
    for site in sites:
        for part in (site.router, site.experts):
            name = next(n for n, m in model.named_modules() if m is part)
            tensors |= {f"{name}.{n}": t for n, t in (*part.named_parameters(), *part.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_fingerprints_of_earlier_versions_are_recognised(olmoe: Any) -> None:
    sites = find_moe_layers(olmoe)
    former = one_hash_over_all(olmoe, sites)
    assert fingerprint(olmoe, sites, scheme="") == former
    with pytest.raises(MoeProbeError, match="scheme 't9' are not known"):
        fingerprint(olmoe, sites, scheme="t9")


def test_a_model_is_compared_with_an_old_trace_as_that_was_made(olmoe: Any) -> None:
    sites = tuple(find_moe_layers(olmoe))
    info = ModelInfo(id="m", fingerprint=fingerprint(olmoe, sites))
    loaded = LoadedModel(olmoe, word_tokenizer(), info, sites, 128)
    old = ModelInfo(id="m", fingerprint=one_hash_over_all(olmoe, sites))
    need_same_weights(loaded.like(old).info, old)
    assert loaded.like(info) is loaded
    assert loaded.like(old).like(info).info == info  # and back
    with pytest.raises(MoeProbeError, match="scheme 't9' are not known"):
        loaded.fingerprint_like("ab-t9")
    assert loaded.like(ModelInfo(id="imported")) is loaded
    with pytest.raises(MoeProbeError, match="not the model of this trace"):
        need_same_weights(loaded.like(old).info, old.model_copy(update={"fingerprint": "0" * 64}))


def test_scales_of_quantised_weights_are_part_of_the_fingerprint() -> None:
    class Halves(torch.Tensor):
        """Weight that consists of codes and scales, as those of torchao and quanto."""

        codes: torch.Tensor
        scales: torch.Tensor

        @staticmethod
        def __new__(cls, codes: torch.Tensor, scales: torch.Tensor) -> Any:
            made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
            made.codes, made.scales = codes, scales
            return made

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["scales", "codes"], None

        @classmethod
        def __torch_dispatch__(  # type: ignore[override]
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.detach.default:
                return cls(args[0].codes, args[0].scales)
            raise NotImplementedError(func)

    model: Any = tiny_moe("mixtral")
    sites = find_moe_layers(model)
    codes, seen = torch.arange(64, dtype=torch.uint8).view(8, 8), []
    for scale in (1.0, 2.0):
        weight = torch.nn.Parameter(Halves(codes, torch.full((8,), scale)), requires_grad=False)
        model.model.layers[0].mlp.experts._parameters["down_proj"] = weight
        seen.append(fingerprint(model, sites))
    assert seen[0] != seen[1]


def test_tokenizer_hash_follows_the_vocabulary_only() -> None:
    first = word_tokenizer()
    before = tokenizer_hash(first)
    first(["w5 w6", "w7"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(first) == before == tokenizer_hash(word_tokenizer())
    assert tokenizer_hash(word_tokenizer(95)) != before
