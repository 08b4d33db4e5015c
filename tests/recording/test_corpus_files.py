"""Corpora as people have them: folders with other files in them, shards, globs, class labels, labels that clash."""

from __future__ import annotations

import gzip
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import RESERVED_LABELS
from moe_probe.features.labels.human_labels import read_labels
from moe_probe.recording.collect.stage import source_state
from moe_probe.recording.corpus import Columns, Corpus
from moe_probe.runs.config import load_config

BOM = b"\xef\xbb\xbf"


def rows(n: int = 6, first: int = 0) -> list[dict]:
    return [{"id": f"d{i}", "topic": "law" if i % 2 else "chemistry", "text": f"text {i}"} for i in range(first, first + n)]


def lines(some: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in some).encode()


def ids(source: str | Path, **options: Any) -> list[str]:
    return [d.id for d in Corpus(source, **options)]


def test_a_mark_in_a_compressed_csv_changes_nothing(tmp_path: Path) -> None:
    """The mark became a part of the first column's name: the groups were gone, and every document its own."""
    table = "group,topic,text\r\n" + "".join(
        f'book{i // 4},{"law" if i < 12 else "art"},"a ""b"" {i}\nc"\r\n' for i in range(24)
    )
    for name, data in (
        ("a.csv.gz", gzip.compress(table.encode())),
        ("b.csv.gz", gzip.compress(BOM + table.encode())),
        ("c.csv", BOM + table.encode()),
    ):
        (tmp_path / name).write_bytes(data)
        summary = Corpus(tmp_path / name).summarize()
        assert (summary.n_groups, summary.n_documents) == (6, 24), name
    assert Corpus(tmp_path / "a.csv.gz").summarize().hash == Corpus(tmp_path / "b.csv.gz").summarize().hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,topic,text,topic\n1,law,a b,x\n", "2 columns called 'topic'"),
        ('topic,text\nlaw,a b\nlaw,"never closed\nlaw,c\n', "line 3 is not CSV.*close every quote"),
        ("topic,text\nlaw,a b\nlaw,a,b\n", "line 3 has 3 fields, the header has 2"),
        ("topic,text\nlaw,a\x00b\n", "line 2 .*NUL"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(MoeProbeError, match=message):
        ids(tmp_path / "c.csv")


def test_bad_rows_of_csv_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes(b"topic,text\nlaw,one\nlaw,caf\xe9\nlaw,a,b\nart,two\n")
    summary = Corpus(tmp_path / "c.csv", skip_bad=True).summarize()
    assert summary.n_documents == 2 and len(summary.skipped) == 2 and "line 3, byte 8 is not UTF-8" in summary.skipped[0]


def test_a_column_twice_in_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_arrays([pa.array(["law"]), pa.array(["a b"]), pa.array(["art"])], names=["topic", "text", "topic"]),
        tmp_path / "c.parquet",
    )
    with pytest.raises(MoeProbeError, match="2 columns called 'topic'"):
        ids(tmp_path / "c.parquet")


FEATURES = {
    "info": {
        "features": {
            "topic": {"names": ["art", "law"], "_type": "ClassLabel"},
            "text": {"dtype": "string", "_type": "Value"},
        }
    }
}


def class_table(*topics: int) -> pa.Table:
    table = pa.table({"topic": pa.array(topics, pa.int64()), "text": [f"text {i}" for i in range(len(topics))]})
    return table.replace_schema_metadata({"huggingface": json.dumps(FEATURES)})


def test_classes_have_names(tmp_path: Path) -> None:
    pq.write_table(class_table(1, 0, 1), tmp_path / "c.parquet")
    assert [d.topic for d in Corpus(tmp_path / "c.parquet")] == ["law", "art", "law"]
    pq.write_table(class_table(1, -1), tmp_path / "c.parquet")
    with pytest.raises(MoeProbeError, match="row 2 has an empty 'topic'"):
        ids(tmp_path / "c.parquet")
    pq.write_table(class_table(1, 2), tmp_path / "c.parquet")
    with pytest.raises(MoeProbeError, match="row 2: 'topic' is class 2: the file names 2 classes"):
        ids(tmp_path / "c.parquet")


def save_to_disk(folder: Path, *tables: pa.Table) -> None:
    """As `datasets` 2 to 4 write it: Arrow streams and their names in state.json."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def test_saved_data_sets_are_read_without_the_extra(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "one", class_table(1, 0), class_table(0))
    for source in (str(tmp_path / "one"), f"datasets:{tmp_path / 'one'}"):
        assert [d.topic for d in Corpus(source)] == ["law", "art", "art"]
    for split, topics in (("train", (1,)), ("test", (0,))):
        save_to_disk(tmp_path / "both" / split, class_table(*topics))
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    corpus = Corpus(tmp_path / "both")
    assert [d.topic for d in corpus] == ["law"] and "test left out" in corpus.summarize().notes[0]
    assert [d.topic for d in Corpus(tmp_path / "both", split="test")] == ["art"]
    with pytest.raises(MoeProbeError, match="no split 'dev': it has train, test"):
        ids(tmp_path / "both", split="dev")
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(MoeProbeError, match=r"data-00001-of-00002\.arrow is missing"):
        ids(tmp_path / "one")


def test_arrow_files_and_damage(tmp_path: Path) -> None:
    table = class_table(1, 0)
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as whole:
        whole.write_table(table)
    assert [d.topic for d in Corpus(tmp_path / "c.arrow")] == ["law", "art"]
    (tmp_path / "c.arrow").write_bytes(b"nothing")
    with pytest.raises(MoeProbeError, match="not an Arrow file"):
        ids(tmp_path / "c.arrow")


def test_shards_globs_and_what_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a.JSONL.GZ").write_bytes(gzip.compress(BOM + lines(rows(2))))
    (tmp_path / "data" / "deep" / "b.jsonl").write_bytes(lines(rows(2, 2)))
    (tmp_path / "data" / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jsonl").write_bytes(lines(rows()))
    corpus = Corpus(tmp_path)
    notes = corpus.summarize().notes
    assert [d.id for d in corpus] == ["d0", "d1", "d2", "d3"]
    assert len(notes) == 2 and notes[0].startswith("1 file is left out") and "README.md" in notes[0]
    assert "hidden" in notes[1] and "x.jsonl" in notes[1]
    assert ids(f"{tmp_path}/data/**/*.jsonl") == ["d2", "d3"] and ids(f"{tmp_path}/d*") == ["d0", "d1", "d2", "d3"]
    with pytest.raises(MoeProbeError, match="no file matches"):
        ids(f"{tmp_path}/*.csv")
    before = source_state(f"{tmp_path}/data/**/*.jsonl")
    (tmp_path / "data" / "deep" / "b.jsonl").write_bytes(lines(rows(3, 2)))
    assert before and source_state(f"{tmp_path}/data/**/*.jsonl") != before and source_state("some/model") is None


def test_arrays_alone_are_a_corpus_and_beside_tables_are_not(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(rows()))
    assert len(ids(tmp_path)) == len(ids(tmp_path / "c.json")) == 6
    (tmp_path / "d.csv").write_text("topic,text\nlaw,a b\n")
    assert len(ids(tmp_path)) == 1


def test_folders_of_text_as_machines_leave_them(tmp_path: Path) -> None:
    files = {
        "chem/0.txt": b"zero",
        "chem/1.TXT": BOM + b"one",
        "law/a/2.txt": b"two",
        "law/a/b/3.txt.gz": gzip.compress(b"three"),
        "law/README.txt": b"",
        "stray.txt": b"no topic",
        "chem/._0.txt": b"\x00\x05\x16",
        "__MACOSX/chem/0.txt": b"x",
        ".ipynb_checkpoints/0.txt": b"y",
        "law/notes.pdf": b"%PDF",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    corpus = Corpus(tmp_path)
    assert [(d.id, d.topic, d.subtopic, d.text) for d in corpus] == [
        ("chem/0", "chem", "", "zero"),
        ("chem/1", "chem", "", "one"),
        ("law/a/2", "law", "a", "two"),
        ("law/a/b/3", "law", "a", "three"),
    ]
    left, deep, hidden = corpus.summarize().notes
    assert left.startswith("3 files are left out") and all(name in left for name in ("README.txt", "stray.txt", "notes.pdf"))
    assert "1 text lies deeper" in deep and hidden.startswith("3 files are hidden")
    assert [d.id for d in Corpus(f"{tmp_path}/*/*.txt")] == ["chem/0"]
    (tmp_path / "law" / "a" / "2.txt").write_bytes("zwei".encode("utf-16"))
    with pytest.raises(MoeProbeError, match=r"2\.txt is UTF-16 text"):
        ids(tmp_path)


@pytest.mark.parametrize("name", sorted(RESERVED_LABELS))
def test_labels_never_replace_columns_of_the_trace(name: str) -> None:
    with pytest.raises(UsageError, match=f"--label {name} would replace a column of the trace"):
        Columns(labels=(name,))


def test_a_clashing_label_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(lines([{**row, "document": "x"} for row in rows()]))
    (tmp_path / "late.jsonl").write_bytes(lines(rows(300)) + rb'{"topic": "law", "text": "t", "id": "half \ud83e"}')
    for corpus, words, message in (
        ("c.jsonl", ["--label", "document"], "would replace"),
        ("late.jsonl", [], "line 301"),
        ("c.jsonl", ["--label", "a", "--label", "a"], "given twice"),
    ):
        done = CliRunner().invoke(
            app,
            [
                "collect",
                str(tmp_path / "no-model"),
                "--corpus",
                str(tmp_path / corpus),
                "--out",
                str(tmp_path / "t"),
                *words,
            ],
        )
        assert done.exit_code in (1, 2) and message in done.output and "loading" not in done.output


@pytest.mark.parametrize("field", ["id", "topic", "subtopic", "group", "split", "register", "text"])
@pytest.mark.parametrize("bad", ["a\x00b", "half \ud83e pair"])
def test_every_string_can_be_written(tmp_path: Path, field: str, bad: str) -> None:
    some = [{**row, "register": "x"} for row in rows(3)]
    some[2][field] = bad
    (tmp_path / "c.jsonl").write_bytes(lines(some))
    with pytest.raises(MoeProbeError, match="line 3 has characters that are not text"):
        ids(tmp_path / "c.jsonl", columns=Columns(labels=("register",)))
    if "\x00" in bad:  # Parquet cannot hold a surrogate
        pd.DataFrame(some).to_parquet(tmp_path / "c.parquet")
        with pytest.raises(MoeProbeError, match="characters that are not text"):
            ids(tmp_path / "c.parquet", columns=Columns(labels=("register",)))


@pytest.mark.parametrize(("value", "message"), [(["a"], "'topic' is a list"), ({"a": 1}, "'topic' is a dict")])
def test_labels_are_texts_or_numbers(tmp_path: Path, value: object, message: str) -> None:
    (tmp_path / "c.jsonl").write_bytes(lines([{**row, "topic": value} for row in rows()]))
    pd.DataFrame([{**row, "topic": value} for row in rows()]).to_parquet(tmp_path / "c.parquet")
    for name in ("c.jsonl", "c.parquet"):
        with pytest.raises(MoeProbeError, match=message):
            ids(tmp_path / name)


def test_a_number_is_one_label_however_it_is_written(tmp_path: Path) -> None:
    values = [3, 3.0, "3", 2.5, True]
    (tmp_path / "c.jsonl").write_bytes(lines([{"topic": v, "text": "t", "id": float(i)} for i, v in enumerate(values)]))
    assert [(d.id, d.topic) for d in Corpus(tmp_path / "c.jsonl")] == [
        ("0", "3"),
        ("1", "3"),
        ("2", "3"),
        ("3", "2.5"),
        ("4", "True"),
    ]


def test_labels_that_differ_in_case_or_blanks_only(tmp_path: Path) -> None:
    names = ["Physics", "physics", "Physics ", " physics", "Law", "café", "cafe\u0301"]
    (tmp_path / "c.jsonl").write_bytes(lines([{"topic": name, "text": "t"} for name in names]))
    summary = Corpus(tmp_path / "c.jsonl").summarize()
    assert len(summary.topics) == 7 and len(summary.notes) == 1
    assert (
        summary.notes[0].startswith("6 values of 'topic' differ in case or blanks only") and "'Physics '" in summary.notes[0]
    )
    assert "Law" not in summary.notes[0]
    many = [{"topic": f"{'T' if i % 2 else 't'}{i // 2}", "text": "t"} for i in range(400)]
    (tmp_path / "c.jsonl").write_bytes(lines(many))
    (note,) = Corpus(tmp_path / "c.jsonl").summarize().notes
    assert note.startswith("400 values") and len(note) < 300


def test_the_extra_is_asked_for_before_the_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    done = CliRunner().invoke(
        app, ["collect", str(tmp_path / "no-model"), "--corpus", "datasets:ag_news", "--out", str(tmp_path / "t")]
    )
    assert done.exit_code == 1 and "pip install 'moe-probe[datasets]'" in done.output and "loading" not in done.output


def test_classes_of_data_sets_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not needed for the tests: what is used of it is three attributes."""

    class ClassLabel:
        names = ("art", "law")

    class Rows(list):
        features = {"topic": ClassLabel(), "text": None}  # noqa: RUF012

    library = types.ModuleType("datasets")
    library.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    rows = Rows([{"topic": 1, "text": "t"}, {"topic": 0, "text": "t"}])
    vars(library).update(ClassLabel=ClassLabel, load_dataset=lambda *a, **k: rows)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert [d.topic for d in Corpus("datasets:some")] == ["law", "art"]


def test_other_texts_of_a_person(tmp_path: Path) -> None:
    """Labels and settings with a mark, as spreadsheets and editors write them; doubled columns are no riddle."""
    (tmp_path / "l.csv").write_bytes(BOM + b"sae,feature,label,pattern\nx, 3,mine,\n")
    assert read_labels(tmp_path / "l.csv").iloc[0].to_dict() == {"sae": "x", "feature": 3, "label": "mine", "pattern": ""}
    (tmp_path / "l.csv").write_text("sae,feature,label,label\nx,3,mine,yours\n")
    with pytest.raises(MoeProbeError, match="2 columns called 'label'"):
        read_labels(tmp_path / "l.csv")
    (tmp_path / "run.yaml").write_bytes(BOM + b"model: m\ncorpus: c\n")
    assert load_config(tmp_path / "run.yaml", {}).model.name == "m"
    (tmp_path / "run.yaml").write_bytes("model: m\ncorpus: c\n".encode("utf-16"))
    with pytest.raises(MoeProbeError, match="UTF-16"):
        load_config(tmp_path / "run.yaml", {})
