"""Weights and tokenizers are recognised by what they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from moe_probe.core.errors import MoeProbeError
from moe_probe.models import find_moe_layers, fingerprint, tokenizer_hash
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


def test_fingerprint_does_not_depend_on_the_pieces(olmoe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fingerprint(olmoe, find_moe_layers(olmoe))
    monkeypatch.setattr("moe_probe.models.identity._CHUNK_BYTES", 100)
    assert fingerprint(olmoe, find_moe_layers(olmoe)) == whole


def test_tokenizer_hash_follows_the_vocabulary_only() -> None:
    first = word_tokenizer()
    before = tokenizer_hash(first)
    first(["w5 w6", "w7"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(first) == before == tokenizer_hash(word_tokenizer())
    assert tokenizer_hash(word_tokenizer(95)) != before
