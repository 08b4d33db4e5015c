"""Files that are odd rather than wrong in one known way: each is read rightly, or refused in a sentence that names it."""

from __future__ import annotations

import base64
import bz2
import errno
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.cli.guard import _refused
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.extras import need_corpus_extra
from moe_probe.core.text import label_text
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.importers import ImportOptions, import_fingerprints, import_responses, import_table
from moe_probe.recording.trace import Trace
from moe_probe.sae import SaeConfig, make_sae
from moe_probe.sae.formats.io import load_sae, save_sae

ROWS = [{"id": f"d{i}", "topic": "law" if i % 2 else "chemistry", "text": f"text {i}"} for i in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
N = 40


def zst(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def ids(source: str | Path) -> list[str]:
    return [document.id for document in Corpus(source)]


# --- labels


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (3.0, "3"),
        (3, "3"),
        (0.5, "0.5"),
        ("x", "x"),
        (True, "True"),
        (b"x", None),
        ([1], None),
        ({}, None),
        (2.0**60, "1.152921504606847e+18"),
    ],
)
def test_labels_are_texts_or_numbers(value: Any, text: str | None) -> None:
    assert label_text(value) == text


# --- corpora


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl.zst.gz", gzip.compress(zst(LINES)), "compressed more than once.*gunzip"),
        ("a.jsonl.zst", zst(gzip.compress(LINES)), "compressed more than once.*unzstd"),
        ("a.jsonl.gz", gzip.compress(bz2.compress(LINES)), "compressed more than once"),
        ("a.csv", b"id\ttopic\ttext\n1\ta\tx\n", "separated by tabs.*NAME.tsv"),
        ("a.csv", b"id;topic;text\n1;a;x\n", "separated by semicolons"),
        ("a.tsv", b"topic,text\na,x\n", "separated by commas"),
        ("a.csv", b"topic,text,topic\na,x,b\n", "2 columns called 'topic'"),
        ("a.jsonl", b"", "it is empty. Try: check the file"),
        ("a.jsonl", b'{"text":"abc","topic":"t","spans":[[0,1e999,"x"]]}', "spans that cannot be read"),
        ("a.jsonl", b'{"text":"abc","topic":"t","spans":[[0.5,2,"x"]]}', "0.5 is no character offset"),
        ("a.jsonl", b'{"text":"abc","topic":"t","spans":"%s"}' % (b"[" * 100_000), "spans that cannot be read"),
    ],
)
def test_odd_text_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(MoeProbeError, match=f"(?s){message}"):
        ids(path)


def test_columns_without_a_name_may_repeat(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("topic,text,,\na,x,,\nb,y,,\n")
    assert [(d.topic, d.text) for d in Corpus(tmp_path / "a.csv")] == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62] * 2, pa.timestamp("us")),
        pa.array([2**31 - 1] * 2, pa.date32()),
        pa.array([2**62] * 2, pa.duration("s")),
    ],
)
def test_times_beyond_python_name_their_column(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"topic": ["a", "b"], "text": ["x", "y"], "when": column}), tmp_path / "a.parquet")
    with pytest.raises(MoeProbeError, match=r"column 'when' of .* cannot be read"):
        ids(tmp_path / "a.parquet")


def test_damage_inside_is_called_damage_in_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"topic": ["a"] * 99, "text": ["x"] * 99}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:4] + b"\xff" * 60 + data[64:])
    with pytest.raises(MoeProbeError, match="damaged") as error:
        ids(tmp_path / "a.parquet")
    assert "\n" not in str(error.value) and "permissions" not in str(error.value)


def test_folders_that_are_links_are_read(tmp_path: Path) -> None:
    for topic in ("a", "b"):
        (tmp_path / "kept" / topic).mkdir(parents=True)
        (tmp_path / "kept" / topic / "0.txt").write_text("text")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for topic in ("a", "b"):
        (corpus / topic).symlink_to(tmp_path / "kept" / topic)
    (tmp_path / "kept" / "a" / "back").symlink_to(tmp_path / "kept" / "a")  # a loop is not followed
    (tmp_path / "kept" / "b" / "up").symlink_to(tmp_path)
    assert ids(corpus) == ["a/0", "b/0"]


def test_a_link_to_nothing_is_no_file_fewer(tmp_path: Path) -> None:
    (tmp_path / "c" / "a").mkdir(parents=True)
    (tmp_path / "c" / "a" / "0.txt").write_text("text")
    (tmp_path / "c" / "a" / "1.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(MoeProbeError, match=r"1\.txt cannot be read"):
        ids(tmp_path / "c")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, as whom tests often run: the refusal is made."""
    (tmp_path / "c" / "a").mkdir(parents=True)
    listed = Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:
        if folder.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MoeProbeError, match="cannot be read"):
        ids(tmp_path / "c")


@pytest.mark.parametrize(("source", "message"), [("", "name of the corpus is empty"), ("x" * 5000, "File name too long")])
def test_names_that_name_nothing(source: str, message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        ids(source)
    with pytest.raises(UsageError, match="--limit 0"):
        Corpus("a.jsonl", limit=0)


def test_names_that_the_system_refuses_are_a_sentence() -> None:
    for number in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        assert _refused(OSError(number, os.strerror(number), "there")) is not None
    assert _refused(OSError(errno.EBADF, "bad", "there")) is None


def test_a_saved_data_set_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.core.extras._found", lambda name: False)
    with pytest.raises(MoeProbeError, match="not installed"):
        need_corpus_extra(f"datasets:{tmp_path}")
    (tmp_path / "state.json").write_text("{}")
    need_corpus_extra(f"datasets:{tmp_path}")


# --- the interchange table


def columns(**changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {
        "document": [f"d{i // 5}" for i in range(N)],
        "topic": ["ab"[i // 5 % 2] for i in range(N)],
        "position": [i % 5 for i in range(N)],
        "token_id": list(range(N)),
        "experts_0": [rng.permutation(8)[:2].tolist() for _ in range(N)],
        "experts_1": [rng.permutation(8)[:2].tolist() for _ in range(N)],
    }
    return out | changed


def imported(tmp_path: Path, table: dict[str, Any], *, lines: bool = False, **options: Any) -> Trace:
    path = tmp_path / ("t.jsonl" if lines else "t.parquet")
    if lines:
        path.write_text("".join(json.dumps({name: values[i] for name, values in table.items()}) + "\n" for i in range(N)))
    else:
        pq.write_table(pa.table(table), path)
    return import_table(path, tmp_path / "trace", options=ImportOptions(num_experts=8, **options))


NAN = float("nan")


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"topic": [1.0] * 5 + [NAN] * 35}, r"(row|line) 6 of .* has no topic"),
        ({"document": [NAN] * N}, r"(row|line) 1 of .* has no document"),
        ({"experts_0": [[1.5, 2.0]] * N}, r"(row|line) 1 of .* has 1.5 in 'experts_0'"),
        ({"experts_0": [[NAN, 2.0]] * N}, "has nan in 'experts_0'"),
        ({"position": [0.5] * N}, r"(row|line) 1 of .* has 0.5 in 'position'"),
    ],
)
def test_missing_and_broken_numbers_name_their_row(
    tmp_path: Path, changed: dict[str, Any], message: str, lines: bool
) -> None:
    with pytest.raises(MoeProbeError, match=message):
        imported(tmp_path, columns(**changed), lines=lines)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"topic": [b"a"] * N}, "row 1 .* 'topic' that is bytes"),
        ({"split": [b"a"] * N}, "row 1 .* 'split' that is bytes"),
        ({"token": [b"\xc3"] * N}, "row 1 .* 'token' that is bytes"),
        ({"experts_0": pa.array([[2**64 - 1, 2]] * N, pa.list_(pa.uint64()))}, "has 18446744073709551615 in 'experts_0'"),
        ({"num_experts_0": [0] * N}, "gives layer 0 0 experts. Try"),
        ({"subtopic": pa.array([2**62] * N, pa.timestamp("us"))}, "column 'subtopic' .* cannot be read"),
    ],
)
def test_values_that_are_no_labels(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        imported(tmp_path, columns(**changed))


@pytest.mark.parametrize("lines", [False, True])
def test_missing_groups_are_no_group(tmp_path: Path, lines: bool) -> None:
    trace = imported(tmp_path, columns(group=[1.0] * 5 + [NAN] * 35), lines=lines)
    assert trace.documents["group"].tolist() == ["1", *(f"d{i}" for i in range(1, 8))]


def test_whole_numbers_may_be_stored_as_floats(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    plain = imported(tmp_path / "a", columns())
    experts = [[float(expert) for expert in chosen] for chosen in columns()["experts_0"]]
    other = imported(tmp_path / "b", columns(position=[float(i % 5) for i in range(N)], experts_0=experts))
    routed = [np.concatenate([chunk.experts for chunk in trace.iter_routing()]) for trace in (plain, other)]
    assert (routed[0] == routed[1]).all()
    for name in ("document", "token_id", "position"):
        assert other.tokens()[name].tolist() == plain.tokens()[name].tolist()
    mixed = imported(tmp_path / "c", columns(document=[i // 5 if i % 2 else float(i // 5) for i in range(N)]), lines=True)
    assert mixed.documents["document"].tolist() == [str(i) for i in range(8)]


def test_a_token_without_text_is_its_id(tmp_path: Path) -> None:
    assert imported(tmp_path, columns(token=[None] + ["x"] * (N - 1))).tokens()["token"].tolist()[:2] == ["0", "x"]


def test_topics_are_for_fingerprints(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["import", str(tmp_path / "t.parquet"), "--out", str(tmp_path / "o"), "--topics", "x.csv"]
    )
    assert done.exit_code == 2 and "--topics cannot be used with --format table" in done.stderr


# --- answers


def answers(
    tmp_path: Path, change: Callable[[int, np.ndarray], dict[str, Any]] = lambda i, routed: {}, **options: Any
) -> Trace:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        routed = np.stack([np.stack([rng.permutation(8)[:2] for _ in range(4)]) for _ in range(8)])
        rows.append(
            {
                "document": f"d{i}",
                "topic": "ab"[i % 2],
                "token_ids": rng.integers(0, 500, 9).tolist(),
                "routed_experts": routed.tolist(),
            }
            | change(i, routed)
        )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return import_responses(tmp_path / "a.jsonl", tmp_path / "trace", **options)


def header(text: str) -> str:
    head = text.encode() + b"\n"
    return base64.b64encode(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head).decode()


def described(routed: np.ndarray, start: Any) -> dict[str, Any]:
    return {
        "data": base64.b64encode(routed.astype("u1").tobytes()).decode(),
        "shape": list(routed.shape),
        "dtype": "uint8",
        "start": start,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, routed: {"routed_experts": header("{'descr': '<i8', 'shape': (1,")}, "line 1 .* no .npy file"),
        (lambda i, routed: {"routed_experts": header("(" * 3000)}, "line 1 .* no .npy file"),
        (lambda i, routed: {"routed_experts": described(routed, True)}, "from True on"),
        (lambda i, routed: {"routed_experts": described(routed, 10**30)}, "9 tokens and routing that starts at token 1000"),
        (lambda i, routed: {"document": "x"}, "line 2 .*document 'x' comes a second time"),
        (lambda i, routed: {"topic": NAN}, "line 1 .* has no topic"),
        (lambda i, routed: {"tokens": [["x"]] * 9}, "tokens that are lists"),
    ],
)
def test_odd_answers_are_refused(tmp_path: Path, change: Callable[[int, np.ndarray], dict[str, Any]], message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        answers(tmp_path, change)


def test_answers_with_numbers_and_gaps_for_labels(tmp_path: Path) -> None:
    trace = answers(tmp_path, lambda i, routed: {"document": float(i), "tokens": [None, *"bcdefghi"]})
    assert trace.documents["document"].tolist() == [str(i) for i in range(6)]
    assert trace.tokens()["token"].tolist()[:2] == [str(trace.tokens()["token_id"].iloc[0]), "b"]


def test_strings_without_a_shape_say_how_they_were_read(tmp_path: Path) -> None:
    trace = answers(
        tmp_path, lambda i, routed: {"routed_experts": base64.b64encode(routed.astype("<i4").tobytes()).decode()}, top_k=2
    )
    assert any("4 layers of 2 experts per token" in note for note in trace.warnings)


# --- fingerprints


def fingerprints(tmp_path: Path, **changed: Any) -> Path:
    entry = {"layer_0": {"selected_experts": [1, 2], "selected_probs": [0.6, 0.4]}}
    data = {
        "dataset": "quiz",
        "category": "algebra",
        "original_prompt": "p",
        "full_text": ["a", "b", "c", "d"],
        "generated_only": ["c", "d"],
        "router_data": [{"token_2": entry}, {"token_3": entry}],
    }
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / "x_examples.json").write_text(json.dumps(data | changed))
    (folder / "y_examples.json").write_text(json.dumps(data | {"category": "biology"}))
    return folder


def one(**layers: Any) -> dict[str, Any]:
    return {"router_data": [{"token_2": layers}]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (one(), "has no layer at token 2"),
        (one(layer_0={"selected_experts": [2**70], "selected_probs": [1]}), "no expert ids"),
        (one(layer_0={"selected_experts": [1], "selected_probs": [10**400]}), "no gate weights"),
        ({"category": None}, "has no category"),
        ({"category": ["a"]}, "'category' that is a list"),
        ({"router_data": [[]]}, "no object of objects"),
        (one(layer_0={"selected_experts": [1]}), "a layer has no 'selected_probs'"),
        (
            {
                "router_data": [
                    {
                        "token_2": {"layer_0": {"selected_experts": [1], "selected_probs": []}},
                        "token_3": {"layer_0": {"selected_experts": [1], "selected_probs": [1]}},
                    }
                ]
            },
            "unequal length",
        ),
        (
            {"router_data": [{f"token_{10**12}": {"layer_0": {"selected_experts": [1], "selected_probs": [1]}}}]},
            "is no position",
        ),
    ],
)
def test_odd_fingerprints_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        import_fingerprints(fingerprints(tmp_path, **changed), tmp_path / "t")


def test_options_that_fingerprints_do_not_have(tmp_path: Path) -> None:
    folder = fingerprints(tmp_path)
    with pytest.raises(UsageError, match="no token ids"):  # a tokenizer would give other text to an index over strings
        import_fingerprints(folder, tmp_path / "t", options=ImportOptions(tokenizer=tmp_path))
    with pytest.raises(UsageError, match="--label register"):
        import_fingerprints(folder, tmp_path / "t", options=ImportOptions(labels=("register",)))
    (tmp_path / "topics.csv").write_text("dataset,category,topic\nquiz,algebra,x\nquiz,algebra,y\nquiz,biology,y\n")
    with pytest.raises(MoeProbeError, match="two topics"):
        import_fingerprints(folder, tmp_path / "t", topics=tmp_path / "topics.csv")


def test_compressed_fingerprints_have_the_same_names(tmp_path: Path) -> None:
    folder = fingerprints(tmp_path)
    file = folder / "x_examples.json"
    (folder / "x_examples.json.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    assert sorted(import_fingerprints(folder, tmp_path / "t").documents["document"]) == ["x", "y"]


# --- SAEs


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    return save_sae(make_sae(SaeConfig(architecture="topk", d_in=4, d_sae=8, k=2)), tmp_path / "sae")


def test_a_mark_before_a_configuration_changes_nothing(sae: Path) -> None:
    before = (sae / "cfg.json").read_bytes()
    (sae / "cfg.json").write_bytes(b"\xef\xbb\xbf" + before)
    assert load_sae(sae).config.k == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"k": 2', b'"k": 2, "k": 3', "the key 'k' is there twice"),
        (b'"k": 2', b'"k": ' + b"[" * 100_000, "nested too deep"),
        (b'"rescale_acts_by_decoder_norm": false', b'"rescale_acts_by_decoder_norm": "false"', "true or false is expected"),
        (b'"k": 2', b'"k": 2, "finetuning_scaling_factor": "no"', "true or false is expected"),
    ],
)
def test_odd_configurations_are_refused(sae: Path, old: bytes, new: bytes, message: str) -> None:
    text = (sae / "cfg.json").read_bytes()
    own = text.index(b'"metadata"')
    end = text.rindex(old)
    assert old in text and own > 0
    (sae / "cfg.json").write_bytes(text[:end] + new + text[end + len(old) :])
    with pytest.raises(MoeProbeError, match=message):
        load_sae(sae)


def test_weights_that_have_no_float32_form_are_refused(sae: Path) -> None:
    tensors = load_file(sae / "sae_weights.safetensors")
    save_file(tensors | {"b_enc": tensors["b_enc"].to(torch.complex64)}, sae / "sae_weights.safetensors")
    with pytest.raises(MoeProbeError, match=r"b_enc of .* has the type torch\.complex64"):
        load_sae(sae)


# --- places to write


def test_a_trace_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    for out, message in (
        ("file", "is a file; a trace is a folder"),
        ("file/t", "is a file; a trace is a folder"),
        ("full", "already contains other files"),
    ):
        options = [
            "collect",
            str(tmp_path / "model"),
            "--corpus",
            str(tmp_path / "gone.jsonl"),
            "--out",
            str(tmp_path / out),
        ]
        done = CliRunner().invoke(app, options)
        assert done.exit_code == 1 and message in done.stderr
        done = CliRunner().invoke(app, ["import", str(tmp_path / "gone.jsonl"), "--out", str(tmp_path / out)])
        assert done.exit_code == 1
    (tmp_path / "full" / "trace").write_text("")
    with pytest.raises(MoeProbeError, match="is a file; a trace is a folder"):
        answers(tmp_path / "full")


def test_a_table_whose_sizes_are_damaged_is_refused() -> None:
    """Asked for the number of a column's values, pyarrow 26 ends the process at this file; its reader raises an error."""
    with pytest.raises(MoeProbeError, match="is damaged behind row 0"):
        Corpus(Path(__file__).parents[1] / "data" / "damaged_sizes.parquet").summarize()
