"""Shared by the tests: a tiny checkpoint on disk with its tokenizer, and a corpus that fits it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.corpora import write_corpus
from support.quick import quick
from support.split_run import make_split_run

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads would only fight each other


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that share what a fixture of their file builds run in one process, so that it is built once.

    With ``pytest -n 2 --dist loadgroup`` every process would otherwise build it for its part of the tests. Tests that share
    nothing stay free and fill the gaps.
    """
    definitions = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]  # every item that is a function has one
    if "split_run" in definitions:
        item.add_marker(pytest.mark.xdist_group("split_run"))
        return
    own = [d for name in definitions for d in definitions[name] if d.scope == "module" and d.baseid.endswith(".py")]
    if own and item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(own[0].baseid))


@pytest.fixture(scope="session", autouse=True)
def small_figures() -> Iterator[None]:
    """Write figures of reports as small PNG files only: drawing them whole takes longer than most analyses.

    `report/test_figure_looks.py` draws them whole.
    """
    from moe_probe.report.plots import drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "WRITTEN", ("png",))
        patch.setattr(drawing, "FILE_DPI", 60)
        yield


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


@pytest.fixture(scope="session")
def split_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of `support.split_run`, not to be changed: `split_run_copy` is."""
    return make_split_run(checkpoint, tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def split_run_copy(split_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of `split_run` for one file of tests."""
    return Path(shutil.copytree(split_run, tmp_path_factory.mktemp("split") / "run", symlinks=True))


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture(scope="module")
def quick_analyses() -> Iterator[None]:
    """Run all tests of a module with quick analyses, and without figures: they are about something else."""
    with quick():
        yield


@pytest.fixture(scope="module")
def quick_analyses_drawn() -> Iterator[None]:
    """The same, with the figures of reports."""
    with quick(drawn=True):
        yield
