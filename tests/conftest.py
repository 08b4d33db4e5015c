"""Shared by the tests: a tiny checkpoint on disk with its tokenizer, and a corpus that fits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.corpora import write_corpus
from support.quick import quick

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads would only fight each other


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny OLMoE with a word tokenizer (BOS in front), saved as a user would find it."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("checkpoint")
    words = {"<bos>": 0, "<pad>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(90)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=32,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=32,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=None,
    )
    transformers.OlmoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture(scope="module")
def quick_analyses() -> Iterator[None]:
    """Run all tests of a module with quick analyses: they are about something else."""
    with quick():
        yield
