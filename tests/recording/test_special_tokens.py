"""Special tokens are no content, whoever wrote them: the tokenizer, the text, a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from moe_probe.core.errors import MoeProbeError
from moe_probe.models import load_model
from moe_probe.recording.collect import CollectOptions, Encoder, collect_trace
from moe_probe.recording.collect.windows import special_ids
from moe_probe.recording.corpus import Corpus, Document

TEXTS = ["salt and acid react in water", "a court heard the case", "the acid of the court is salt"]


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """As GPT-OSS: one token begins and ends, role marks are added tokens that are in no named role."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            special_tokens=["<|endoftext|>", "<|start|>", "<|message|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            vocab_size=300,
        ),
    )
    core.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def sentence_piece() -> transformers.PreTrainedTokenizerFast:
    """As Llama 2: BOS in front, EOS behind, an unknown token that stands for letters of the text."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>", "[INST]"], vocab_size=120))
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece() -> transformers.PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    )
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


#: Tokenizer, text with special tokens in it, the special tokens in order, the rest without blanks, what is added behind.
CASES = [
    (byte_level, "salt<|endoftext|>acid", ["<|endoftext|>"] * 2, "saltacid", 0),
    (byte_level, "<|endoftext|>salt and acid", ["<|endoftext|>"] * 2, "saltandacid", 0),
    (byte_level, "<|start|>user<|message|>salt", ["<|endoftext|>", "<|start|>", "<|message|>"], "usersalt", 0),
    (byte_level, "salt<|endoftext|>", ["<|endoftext|>"] * 2, "salt", 0),
    (byte_level, "salt and acid", ["<|endoftext|>"], "saltandacid", 0),
    (sentence_piece, "<s>[INST] salt [INST] acid</s>", ["<s>", "<s>", "[INST]", "[INST]", "</s>", "</s>"], "saltacid", 1),
    # the unknown token is a letter that someone wrote
    (sentence_piece, "salt ж acid", ["<s>", "</s>"], "salt<unk>acid", 1),
    (word_piece, "salt [SEP] acid [MASK]", ["[CLS]", "[SEP]", "[MASK]", "[SEP]"], "saltacid", 1),
    (word_piece, "salt ж acid", ["[CLS]", "[SEP]"], "salt[UNK]acid", 1),
]


@pytest.mark.parametrize(("make", "text", "special", "content", "closing"), CASES)
def test_what_is_special(make, text: str, special: list[str], content: str, closing: int) -> None:
    tokenizer = make()
    encoded = Encoder(tokenizer, max_length=64, overlap=4)(Document("d", text, "t"))
    assert tokenizer.convert_ids_to_tokens(encoded.ids[encoded.special].tolist()) == special
    assert "".join(tokenizer.decode(encoded.ids[~encoded.special].tolist()).split()) == content
    assert encoded.n_closing == closing


def test_the_unknown_token_is_content_unless_it_begins_the_text() -> None:
    assert special_ids(byte_level()).tolist() == [0, 1, 2]  # GPT-2 and its heirs: one token for everything
    assert special_ids(sentence_piece()).tolist() == [1, 2, 3] and special_ids(word_piece()).tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["<|endoftext|>" + "salt and acid " * 9, "<|start|>user<|message|>" + "the court " * 9])
def test_what_the_text_spells_out_stays_where_it_stands(text: str) -> None:
    """Only what the tokenizer adds is repeated in front of later windows."""
    encoder = Encoder(byte_level(), max_length=12, overlap=3)
    encoded = encoder(Document("d", text, "t"))
    assert len(encoded.windows) > 2
    assert (np.concatenate([w.ids[w.record] for w in encoded.windows]) == encoded.ids).all()
    for window in encoded.windows[1:]:
        assert window.ids[0] == 0 and not np.isin(window.ids[1:], encoder.special_ids).any()
    assert encoded.special.sum() == (2 if text.startswith("<|end") else 3)


def test_the_trace_knows_them(checkpoint: Path, tmp_path: Path) -> None:
    """A second BOS in every document and one between two passages: special in the trace, in no count."""
    loaded = load_model(checkpoint)
    rows = [{"id": f"d{i}", "topic": "ab"[i % 2], "text": f"<bos> w{i} w2 <bos> w3 <pad> w4 unheard"} for i in range(16)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = collect_trace(
        loaded, Corpus(tmp_path / "c.jsonl"), tmp_path / "t", progress=False, options=CollectOptions(max_length=8)
    )
    tokens = trace.tokens()
    assert (tokens.groupby("document")["special"].sum() == 4).all() and (trace.documents["n_tokens"] == 5).all()
    assert set(tokens.loc[tokens["special"], "token"]) == {"<bos>", "<pad>"}
    assert "<unk>" in set(tokens.loc[~tokens["special"], "token"])
    assert trace.usage().selections.sum() == 16 * 5 * 3 * 2


@pytest.mark.parametrize("text", ["<pad>", " <bos><pad> "])
def test_a_document_of_special_tokens_is_refused_before_the_model_runs(checkpoint: Path, tmp_path: Path, text: str) -> None:
    rows = [{"id": f"d{i}", "topic": "a", "text": f"w{i}"} for i in range(40)] + [{"id": "void", "topic": "b", "text": text}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MoeProbeError, match="document 'void' has no tokens of text"):
        collect_trace(
            load_model(checkpoint),
            Corpus(tmp_path / "c.jsonl"),
            tmp_path / "t",
            progress=False,
            options=CollectOptions(shard_tokens=8),
        )
    assert not (tmp_path / "t").exists()
