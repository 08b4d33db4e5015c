"""Text in any language: characters that several tokens share are read, found, shaded and drawn as characters."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.pieces import byte_alphabet, decode, marked, token_text, whole_characters, with_spaces
from moe_probe.core.text import cells, cut_to, line_breaks, printable, table_lines
from moe_probe.experts.contexts import expert_contexts
from moe_probe.experts.explain import expert_tokens
from moe_probe.experts.explain.classes import token_class
from moe_probe.features.labels.context import _words, token_context
from moe_probe.features.labels.excerpts import Excerpt
from moe_probe.features.labels.llm import _shown
from moe_probe.features.search.occurrences import occurrences
from moe_probe.models import LoadedModel, load_model
from moe_probe.recording.collect import CollectOptions, collect_trace
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.stored import StoredTokens, readable
from moe_probe.report import write_report
from moe_probe.report.content import Passage
from moe_probe.report.passages import shaded
from moe_probe.report.unit_card import UnitCard
from moe_probe.testing import planted_results

SENTENCES = (
    "Привет, мир! Наука о веществах называется химией, а соль растворяется в воде.",
    "有机化学是研究碳化合物的科学。量子力学描述微观粒子。",
    "الكيمياء هي علم المادة وتفاعلاتها",
    "the ratio -μ)/σ and x² of Büchner are naïve",
    "science 🧪 is fun 👩‍🔬",
)
TOPICS = ("химия", "化学", "كيمياء", "formulas", "🧪")
KINDS = ("byte-level", "sentence-piece", "word pieces")


def tokenizer_of(kind: str, folder: Path) -> Any:
    """A tokenizer trained on the sentences, so small that characters fall into pieces."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<s>", "<pad>", "<unk>"]
    if kind == "byte-level":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        core.train_from_iterator(
            SENTENCES,
            trainers.BpeTrainer(
                vocab_size=310,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
    elif kind == "word pieces":
        core = Tokenizer(models.WordPiece(unk_token="<unk>"))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
        core.train_from_iterator(SENTENCES, trainer)
    else:
        import sentencepiece

        corpus, prefix = folder / "sentences.txt", folder / "pieces"
        corpus.write_text("\n".join([SENTENCES[0], "the ratio and of are naive, science is fun"] * 3), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(prefix),
            vocab_size=330,
            byte_fallback=True,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            minloglevel=2,
        )
        trained = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
        pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(len(trained))]
        core = Tokenizer(models.Unigram(pieces, unk_id=trained.unk_id(), byte_fallback=True))
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model with one of the tokenizers."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizer_of(request.param, folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    transformers.OlmoeForCausalLM(
        transformers.OlmoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=256,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=None,
        )
    ).save_pretrained(folder)
    return load_model(str(folder), progress=False)


def write_sentences(path: Path) -> Path:
    """Every sentence three times, as a topic of its own."""
    path.write_text(
        "".join(json.dumps({"id": f"d{i}", "topic": TOPICS[i % 5], "text": s}) + "\n" for i, s in enumerate(SENTENCES * 3)),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def trace(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    root = tmp_path_factory.mktemp("trace")
    corpus = Corpus(str(write_sentences(root / "corpus.jsonl")))
    return collect_trace(loaded, corpus, root / "trace", options=CollectOptions(), progress=False)


def is_word_piece(trace: Trace) -> bool:
    return trace.manifest.settings["token_text"] == "words"


def text_of(trace: Trace, document: int) -> str:
    table = trace.tokens(["document", "token", "special"])
    kept = ~table["special"].to_numpy()
    tokens = trace.spaced(table["token"].to_numpy(dtype=object)[kept])
    return decode(tokens[table["document"].to_numpy()[kept] == document]).text.strip()


def test_documents_read_as_they_were_written(trace: Trace) -> None:
    for i, sentence in enumerate(SENTENCES):
        # word pieces are lower case, and have lost accents, joiners and spaces round signs
        if not is_word_piece(trace) or i in (1, 2):
            assert text_of(trace, i) == sentence
    if is_word_piece(trace):
        assert text_of(trace, 0).startswith("привет, мир! наука о веществах")


@pytest.mark.parametrize(
    ("query", "regex", "document"),
    [
        ("Büchner", False, 3),
        ("x²", False, 3),
        ("-μ)/σ", False, 3),
        ("ХИМИЕЙ", False, 0),
        ("Наука о веществах", False, 0),
        ("化学", False, 1),
        ("量子力学", False, 1),
        ("علم المادة", False, 2),
        ("🧪", False, 4),
        (r"раствор\w+", True, 0),
    ],
)
def test_words_of_any_script_are_found(trace: Trace, query: str, regex: bool, document: int) -> None:
    rows = occurrences(trace, query, regex=regex)
    table = trace.tokens(["document", "token"])
    assert sorted(set(table["document"][rows] % 5)) == [document]
    tokens = trace.spaced(table["token"].to_numpy(dtype=object))
    one = rows[table["document"][rows] == document]
    found = "".join(decode(tokens[one[0] : one[-1] + 1]).text.split()).lower()
    if not is_word_piece(trace):  # the tokens cover the query and what else their characters belong to
        assert regex or query.lower().replace(" ", "") in found
        assert len(found) <= len(query) + 6


@pytest.mark.parametrize("query", ["Büch", "Хими", "علم الماد", "κ", "chner"])
def test_parts_of_words_are_not_found(trace: Trace, query: str) -> None:
    assert not len(occurrences(trace, query))


def test_decomposed_accents_are_the_same_word(trace: Trace) -> None:
    composed, decomposed = occurrences(trace, "Büchner"), occurrences(trace, "Bu\u0308chner")
    assert composed.tolist() == decomposed.tolist() and len(composed)


def test_contexts_and_token_tables_hold_text(trace: Trace) -> None:
    texts = [text_of(trace, i) for i in range(5)]
    for row in expert_contexts(trace).table.itertuples():
        shown = "".join(text for text, _ in shaded(row.tokens, row.weights, largest=1.0)).replace("<s>", "").strip()
        assert shown in texts or any(shown in text for text in texts), shown
        assert "⟨" not in shown and "\ufffd" not in shown
    tokens = set("".join(expert_tokens(trace).table["token"]))
    assert not tokens & set("ÐÑÎÂ¼Ġ▁") and tokens & set("приветнаукао")


def test_words_of_labels_are_whole(trace: Trace) -> None:
    words = {w for w in token_context(trace).factor("word").values if w}
    if is_word_piece(trace):
        assert {"привет", "мир", "наука", "buchner", "науки"} & words >= {"привет", "мир", "наука", "buchner"}
    else:
        assert {"привет", "мир", "наука", "büchner", "naïve", "الكيمياء"} <= words
    assert "有机化学是研究碳化合物的科学" not in words  # without spaces, each token is a word


@pytest.fixture(scope="module")
def run(trace: Trace, loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace as a run, its contexts measured, all other tables drawn at random."""
    root = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(trace.root, root / "trace")
    planted_results(trace, root / "results", words=sorted(set(trace.token_strings().values())))
    for name in ("features", "feature_cards"):
        (root / "results" / f"{name}.parquet").unlink()
    expert_contexts(trace).save(root / "results")
    (root / "run.yaml").write_text(f"model: {loaded.info.id}\ncorpus: {root / 'corpus.jsonl'}\n", encoding="utf-8")
    return root


def moe_probe(*words: object) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, done.stderr
    return str(done.stdout)


def test_commands_read_and_show_characters(run: Path, trace: Trace, tmp_path: Path) -> None:
    assert "'Büchner': " in (said := moe_probe("find", run, "Büchner", "--quiet")) and "in 3 documents" in said
    assert "in 3 documents of the corpus" in moe_probe("find", run, "量子力学", "--quiet")
    view = moe_probe(
        "inspect",
        run,
        "Привет, 有机化学! Büchner is fun 🧪",
        "--shade",
        "0:0",
        "--no-timing",
        "--html",
        tmp_path / "view.html",
        "--quiet",
    )
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    plain = "".join(c for c in view.split("shaded:")[0] if c not in "«»‹›")
    inside = "".join(re.findall(r"<span data-i=[^>]*>([^<]*)</span>", page))
    for text in (plain, inside):
        if is_word_piece(trace):  # whether a space stood before Chinese characters is not known
            assert "привет,有机化学! buchner is fun 🧪" in text
        else:
            assert "Привет, 有机化学! Büchner is fun 🧪" in text
    parts = [list(map(int, tokens.split())) for tokens in re.findall(r'<span data-i="([^"]*)"', page)]
    n = len(
        json.loads(moe_probe("inspect", run, "Привет, 有机化学! Büchner is fun 🧪", "--no-timing", "--json", "--quiet"))[
            "texts"
        ][0]["tokens"]
    )
    assert sorted({i for part in parts for i in part}) == list(range(n))


def test_a_report_reads_as_the_corpus_does(run: Path) -> None:
    files = write_report(run)
    page, markdown = ("".join(p.read_text(encoding="utf-8") for p in files if p.suffix == end) for end in (".html", ".md"))
    for text in (re.sub("<[^>]*>", "", page), re.sub("</?b>", "", markdown)):
        assert all(topic in text for topic in TOPICS)
        assert "Ð" not in text and "Ñ" not in text and "Ġ" not in text
        assert sum(any(s[i : i + 5] in text for i in range(len(s) - 5)) for s in (*SENTENCES[:3], SENTENCES[0].lower())) >= 2


def test_words_of_ascii_are_as_before() -> None:
    first = np.array([True, False, False, False, False])
    number, words = _words(np.array([" snake", "_case", " don", "'t", " 3rd"], dtype=object), first)
    assert words == ["snake", "", "don't", "3rd"] and number.tolist() == [0, 1, 2, 2, 3]
    number, words = _words(np.array([" हिन्द", "ी", " می\u200c", "خواهم", "化"], dtype=object), first)
    assert words == ["हिन्दी", "می\u200cخواهم", "化"]


def test_characters_of_several_tokens() -> None:
    text = decode(["x⟨c2⟩", "⟨b2⟩", " is", " ⟨f0⟩⟨9f⟩", "⟨98⟩", "⟨80⟩!"])
    assert text.text == "x² is 😀!"
    assert list(zip(text.starts.tolist(), text.ends.tolist(), strict=True)) == [
        (0, 2),
        (1, 2),
        (2, 5),
        (5, 7),
        (6, 7),
        (6, 8),
    ]
    assert text.shares() == ["x²", "", " is", " 😀", "", "!"]
    assert text.shaded([1, 2, 0, 0, 3, 0]) == [("x", 1), ("²", 2), (" is", 0), (" ", 0), ("😀", 3), ("!", 0)]
    assert text.rows(1, 2) == slice(0, 2) and text.rows(7, 8) == slice(5, 6)
    assert text.name(1) == "⟨b2⟩ (²)" and text.name(2) == "is"


def test_bytes_that_are_no_character_stay_marked() -> None:
    text = decode(["a⟨c2⟩", "b", "⟨80⟩⟨80⟩", "é⟨e2⟩⟨82⟩"])
    assert text.text == "a⟨c2⟩b⟨80⟩⟨80⟩é⟨e2⟩⟨82⟩" and "".join(text.shares()) == text.text
    assert decode([]).text == "" and decode([]).segments() == [] and decode(["⟨27⟩", "⟨zz⟩"]).text == "⟨27⟩⟨zz⟩"
    assert decode(np.array(["plain", " text"], dtype=object)).shaded([0.5, 0.0]) == [("plain", 0.5), (" text", 0.0)]


def test_spans_are_widened_to_whole_characters() -> None:
    tokens = ["a", "⟨d0⟩", "⟨9f⟩", "⟨d1⟩", "⟨80⟩", "b"]
    assert whole_characters(tokens, 2, 4, within=(0, 6)) == (1, 5)
    assert whole_characters(tokens, 0, 1, within=(0, 6)) == (0, 1) and whole_characters(tokens, 2, 3, within=(2, 3)) == (
        2,
        3,
    )


def test_text_of_word_pieces_stands_as_in_print() -> None:
    tokens = np.array(["有", "机", "。", "the", "acid", "##ic", "(", "x", ")", ",", "y", "学"], dtype=object)
    assert "".join(with_spaces(tokens)) == "有机。the acidic (x), y学"
    assert "".join(with_spaces(np.array(["words", ",", "alone"], dtype=object))) == " words , alone"


def byte_pieces(*tokens: bytes) -> list[str]:
    characters = {b: c for c, b in byte_alphabet().items()}
    return ["".join(characters[b] for b in token) for token in tokens]


def stored(tokens: list[str], document: int = 0) -> StoredTokens:
    ids = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    return StoredTokens(np.full(len(tokens), document), np.array([ids[t] for t in tokens]), np.array(tokens, dtype=object))


def as_read(tokens: list[str], text: str | None = None) -> str:
    table, texts = stored(tokens), None if text is None else lambda rows: [text] * len(rows)
    known = readable(lambda: [table], texts)
    twice = StoredTokens(*(np.concatenate(pair) for pair in zip(table, stored(tokens, document=1), strict=True)))
    # documents one after the other are read alike in one shard and in two
    assert readable(lambda: [twice], texts) == readable(lambda: [table, stored(tokens, document=1)], texts)
    return decode([known.get(key, key[1]) for key in zip(table.token_id.tolist(), table.token, strict=True)]).text


def test_imported_pieces_of_bytes_are_read() -> None:
    character = "化".encode()
    pieces = byte_pieces("При".encode(), "вет".encode(), b" x", b"\xc2", b"\xb2", character[:2], character[2:], b"\n")
    assert as_read(pieces) == "Привет x²化\n" and "Ġx" in pieces


def test_imported_sentence_pieces_are_read() -> None:
    assert as_read(["▁Привет", ",", "▁x", "<0xC2>", "<0xB2>", "▁", "化"]) == " Привет, x² 化"


@pytest.mark.parametrize(
    "tokens",
    [
        ["naïve", " café", " Île", " ¼", " x", "Ã", "©"],
        ["māja", "ēka", "ģ", "ķ"],
        [" ▁▂▃", " plain"],
        ["Ãle", "é", "le"],
        ["Привет", " мир"],
        ["<0xE2>x", "w1", "w2"],
        ["½", " of", "Ñ", "andú"],
    ],
)
def test_strings_that_are_text_stay_text(tokens: list[str]) -> None:
    assert as_read(tokens, "".join(tokens)) == "".join(tokens)
    if "©" not in tokens:  # Ã before © are also the bytes of é: only the document's own text can tell
        assert as_read(tokens) == "".join(tokens)


def test_earlier_traces_are_read_by_the_company_a_string_keeps() -> None:
    # text where a token is text, pieces where it is a part of a character
    mixed = [
        "the",
        " ratio",
        " -",
        *byte_pieces(b"\xce", b"\xbc"),
        ")/",
        *byte_pieces(b"\xcf", b"\x83", b" \xc2", b"\xb2"),
        " ¼",
        " Îl",
        "e",
        " é",
        "ab",
    ]
    for text in (None, "the ratio -μ)/σ ² ¼ Île éab"):
        assert as_read(mixed, text) == "the ratio -μ)/σ ² ¼ Île éab"
    assert as_read([" the", "<0xE2>", "<0x82>", "<0xAC>", "▁", "1"]) == " the€ 1"


def test_traces_of_the_first_kind_stay_readable(trace: Trace, loaded: LoadedModel, tmp_path: Path) -> None:
    """The same documents, written as they were before: text, or the vocabulary's piece where that is a part of a character."""
    manifest = trace.manifest.model_copy(
        update={
            "status": "writing",
            "shards": (),
            "files": (),
            "n_documents": 0,
            "n_tokens": 0,
            "settings": {k: v for k, v in trace.manifest.settings.items() if k != "token_text"},
        }
    )
    table, tokenizer = trace.tokens(), loaded.tokenizer

    def before(token_id: int) -> str:
        text, piece = tokenizer.decode([token_id]), str(tokenizer.convert_ids_to_tokens(token_id))
        if not text or "\ufffd" in text:
            return piece
        return f" {text}" if piece.startswith("▁") and not text[0].isspace() else str(text)

    writer = TraceWriter.create(tmp_path / "trace", manifest)
    documents = trace.documents.assign(text=trace.texts()).drop(columns="n_tokens").to_dict("records")
    chunk = next(trace.iter_routing())
    writer.append(
        documents=documents,
        experts=chunk.experts,
        weights=chunk.weights,
        tokens={
            "document": table["document"].to_numpy(),
            "position": table["position"].to_numpy(),
            "token_id": table["token_id"].to_numpy(),
            "token": [before(i) for i in table["token_id"].tolist()],
            "special": table["special"].to_numpy(),
        },
    )
    old = writer.seal()
    assert old.tokens(["token"])["token"].tolist() == table["token"].tolist()
    assert old.token_strings() == trace.token_strings()
    assert np.concatenate([c.columns["token"] for _, c in old.iter_tokens(["token"])]).tolist() == table["token"].tolist()
    assert list(old.tokens().columns) == list(table.columns)


def test_an_unfinished_earlier_trace_is_resumed(trace: Trace, tmp_path: Path) -> None:
    empty = {"status": "writing", "shards": (), "files": (), "n_documents": 0, "n_tokens": 0}
    now = trace.manifest.model_copy(update=empty)
    before = now.model_copy(update={"settings": {k: v for k, v in now.settings.items() if k != "token_text"}})
    TraceWriter.create(tmp_path / "old", before)
    assert TraceWriter.resume(tmp_path / "old", now).manifest.settings == before.settings
    TraceWriter.create(tmp_path / "new", now)
    with pytest.raises(MoeProbeError, match="another settings"):
        TraceWriter.resume(tmp_path / "new", before)


def test_single_tokens_are_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level", tmp_path)
    ids = tokenizer("µ ²")["input_ids"]
    assert decode([token_text(tokenizer, i) for i in ids]).text == "µ ²"
    assert token_text(tokenizer, 0) == "<s>" and marked("é".encode()[:1]) == "⟨c3⟩"
    assert token_class(" ⟨d0⟩") == "other script" and token_class("⟨9f⟩.") == "punctuation"


def test_excerpts_for_a_language_model_mark_characters() -> None:
    excerpt = Excerpt("strongest", 0, 0, ("a ", "⟨d0⟩", "⟨9f⟩", "ри"), (0.0, 0.0, 2.0, 0.0))
    assert _shown(excerpt, marked=True) == "a <<П>>ри"


def test_cards_show_characters() -> None:
    card = UnitCard("t", (), (Passage("strongest", shaded(["x⟨c2⟩", "⟨b2⟩", " ä"], [0.0, 0.9, 0.0])),))
    assert "<b>²</b>" in card.markdown() and "x[²] ä" in str(card) and "<span>x</span>" in card._repr_html_()


def test_widths_of_characters() -> None:
    assert [cells(s) for s in ("abc", "有机", "é", "e\u0301", "カナ")] == [3, 4, 1, 1, 4]
    assert cut_to("有机化学", 5) == "有机…" and cut_to("abcdef", 4) == "abc…" and cut_to("有机", 4) == "有机"
    assert cut_to("e\u0301e\u0301e\u0301", 2) == "e\u0301…"


def broken(text: str, width: int) -> list[str]:
    """Lines of a text."""
    cuts = [0, *line_breaks(text, width), len(text)]
    return [text[start:end].rstrip(" ") for start, end in itertools.pairwise(cuts)]


def test_lines_break_between_characters_of_scripts_without_spaces() -> None:
    text = "有机化学是研究碳化合物的科学。量子力学（描述）"
    for width in range(4, 16):
        lines = broken(text, width)
        assert all(cells(line) <= width for line in lines) and "".join(lines) == text
        assert not any(line.startswith(("。", "）")) or line.endswith("（") for line in lines)
    assert broken("plain words stay", 11) == ["plain words", "stay"] and broken("one two three", 9) == ["one two", "three"]
    assert broken("a 有机化学 b", 6) == ["a 有机", "化学 b"] and broken("overlong", 3) == ["overlong"]


def test_spaces_and_joiners_are_shown_as_they_are() -> None:
    assert printable("«\u00a0mot\u3000字 می\u200cخواهم 👩\u200d🔬") == "«\u00a0mot\u3000字 می\u200cخواهم 👩\u200d🔬"
    assert printable("a\x1b[2J\u202eb\u2028\ufeff") == "a\\x1b[2J\\x202eb\\x2028\\xfeff"


def test_wide_characters_align_in_tables() -> None:
    lines = table_lines(pd.DataFrame({"topic": ["化学", "history"], "n": [1, 2]}))
    assert len({cells(line) for line in lines}) == 1
    table = pd.DataFrame(
        {
            "topic": ["化学", "e\u0301te\u0301", "الكِتَابُ", "a\nb", None],
            "n": [1.5, 2, np.nan, 4, 5],
            "i": pd.array([0, 1, 2, None, 4], dtype="Int64"),
        }
    )
    lines = table_lines(table)
    assert len({cells(line) for line in lines}) == 1 and len(lines) == 6
    assert lines[1].split() == ["化学", "1.5", "0"] and lines[3].split()[1:] == ["–", "2"] and lines[5].split()[0] == "–"
    assert "a\\nb" in lines[4] and lines[4].endswith("–") and cells(table_lines(table, most=4)[0]) < cells(lines[0])


def test_regular_expressions_and_whole_words_of_ascii_are_as_before() -> None:
    class Fake:
        manifest, spaced = SimpleNamespace(has_text=False), staticmethod(lambda tokens: tokens)

        def tokens(self, columns: list[str]) -> pd.DataFrame:
            return pd.DataFrame({"document": [0] * 4, "token": [" an", "an_", "an", " an"], "special": False})

    fake: Any = Fake()
    assert occurrences(fake, "an").tolist() == [3] and not len(occurrences(fake, "an an"))
    assert occurrences(fake, "a[n_]+", regex=True).tolist() == [0, 1, 2, 3]


def test_a_query_is_changed_as_the_tokenizer_changes_texts() -> None:
    class Fake:
        manifest, spaced = SimpleNamespace(has_text=True), staticmethod(lambda tokens: tokens)
        text = "the area x² of Café"

        def tokens(self, columns: list[str]) -> pd.DataFrame:
            return pd.DataFrame(
                {"document": [0] * 6, "token": ["the", " area", " x", "2", " of", " cafe"], "special": False}
            )

        def changed(self, *tokens: str) -> Any:
            self.tokens = lambda columns: pd.DataFrame(  # type: ignore[method-assign]  # the stand-in is given other tokens
                {"document": 0, "token": list(tokens), "special": False}
            )
            return self

        def texts(self) -> list[str]:
            return [self.text]

    fake: Any = Fake()
    assert occurrences(fake, "x²").tolist() == [2, 3] and occurrences(fake, "café").tolist() == [5]
    fake.text = "the area x2 of cafe"  # then x² is not in the corpus, and x2 is something else
    assert not len(occurrences(fake, "x²"))
    fake.text = "science 👩\u200d🔬 e\u0301"  # tokenizers that clean texts drop joiners
    assert occurrences(fake.changed("science", " 👩🔬", " e"), "👩\u200d🔬").tolist() == [1]
    assert not len(occurrences(fake, "\u0301")), "an accent that was dropped is nowhere"


def test_figures_have_the_characters_of_their_labels() -> None:
    from matplotlib.text import Text

    from moe_probe.report.plots import fonts
    from moe_probe.report.plots.drawing import new_figure

    fonts._warn.cache_clear()
    figure = new_figure(3, 2)
    axes = figure.subplots()
    labels = ["plain", "有机化学", "كيمياء", "😀", "\U0010fffd"]
    axes.set_yticks(range(5), labels)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.draw_without_rendering()
        figure.draw_without_rendering()
    lacking = {
        fonts._script(c)
        for label in labels
        for c in label
        if not c.isascii()
        and c.isprintable()
        and c not in fonts._characters_of(("sans-serif",))
        and fonts.font_with(c) is None
    }
    sentences = [str(w.message) for w in said if w.category is fonts.FontWarning]
    assert len(sentences) == len(lacking) and all("Install one" in s for s in sentences)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        for character in text.get_text():
            if not character.isascii() and character.isprintable() and (name := fonts.font_with(character)):
                families = text.get_fontfamily()
                assert name in families or character in fonts._characters_of(tuple(families[:1]))
    assert not any(font.startswith("Last Resort") for c in "有ك😀" if (font := fonts.font_with(c) or ""))


def test_a_script_without_a_font_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_probe.report.plots import fonts
    from moe_probe.report.plots.drawing import new_figure

    monkeypatch.setattr(fonts, "font_with", lambda character: None)
    fonts._warn.cache_clear()
    figure = new_figure(3, 2)
    figure.subplots().set_title("有机化学")
    with pytest.warns(
        fonts.FontWarning, match=r"^Figures show boxes in place of Chinese characters: .* apt-get install"
    ) as said:
        figure.draw_without_rendering()
        figure.draw_without_rendering()
    assert len(said) == 1


def test_the_command_says_once_that_a_font_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_probe.report.plots import fonts

    monkeypatch.setattr(fonts, "font_with", lambda character: None)
    fonts._warn.cache_clear()
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and done.stderr.count("note: Figures show boxes in place of Chinese characters") == 1
    assert "UserWarning" not in done.stderr and "Glyph" not in done.stderr
