"""Corpus readers: every format, every kind of bad row, splits that hold."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.recording.corpus import Columns, Corpus, assign_halves, stratified_split

ROWS = [
    {"id": "a", "topic": "chemistry", "subtopic": "acids", "text": "salt, “and” acid\nsecond line"},
    {"id": "b", "topic": "law", "subtopic": "", "text": "a court"},
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.name.endswith(".gz"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(r) + "\n" for r in rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.csv", "c.tsv", "c.parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    documents = list(Corpus(write(tmp_path / name, ROWS)))
    assert [(d.id, d.topic, d.subtopic, d.text, d.group) for d in documents] == [
        (r["id"], r["topic"], r["subtopic"], r["text"], r["id"]) for r in ROWS
    ]
    assert Corpus(tmp_path / name).summarize().hash == Corpus(write(tmp_path / "x.jsonl", ROWS)).summarize().hash


def test_folder_of_text(tmp_path: Path) -> None:
    for topic, sub in (("chemistry", "acids"), ("law", "courts")):
        (tmp_path / topic / sub).mkdir(parents=True)
        (tmp_path / topic / sub / "one.txt").write_text(f"about {sub}", encoding="utf-8")
    documents = list(Corpus(tmp_path))
    assert [(d.id, d.topic, d.subtopic, d.text) for d in documents] == [
        ("chemistry/acids/one", "chemistry", "acids", "about acids"),
        ("law/courts/one", "law", "courts", "about courts"),
    ]


def test_dataset_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS)
    assert [d.id for d in Corpus(f"datasets:{tmp_path}")] == ["a", "b"]
    with pytest.raises(MoeProbeError, match="cannot be loaded"):
        list(Corpus(f"datasets:{tmp_path / 'nothing'}"))


BAD = [
    ("{not json", "line 2 is not JSON"),
    ("[1]", "line 2 is not a JSON object"),
    ('{"id": "x", "topic": "t"}', "line 2 has no column 'text'"),
    ('{"id": "x", "topic": "", "text": "t"}', "line 2 has an empty 'topic'"),
    ('{"id": "x", "topic": "t", "text": 5}', "not text"),
    ('{"id": "a", "topic": "t", "text": "t"}', "repeats the id 'a'"),
    ('{"id": "x", "topic": "t", "text": "a\\u0000b"}', "not text"),
    ('{"id": "x", "topic": "t", "text": "abc", "spans": [[0, 9, "l"]]}', "outside its text"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_rows_are_named_or_counted(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n" + json.dumps(ROWS[1]) + "\n", encoding="utf-8")
    with pytest.raises(MoeProbeError, match=message):
        list(Corpus(path))
    summary = Corpus(path, skip_bad=True).summarize()
    assert summary.n_documents == 2 and len(summary.skipped) == 1


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"topic": "t", "text": "\xff"}\n')
    with pytest.raises(MoeProbeError, match="line 1"):
        list(Corpus(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.jsonl", "there is no corpus"),
        (lambda p: p, "there is no corpus in"),
        (lambda p: write(p / "c.jsonl", []), "has no document"),
    ],
)
def test_nothing_to_read(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        list(Corpus(make(tmp_path)))


def test_unknown_format_and_misspelt_column(tmp_path: Path) -> None:
    (tmp_path / "c.docx").write_text("x")
    with pytest.raises(MoeProbeError, match="format of"):
        list(Corpus(tmp_path / "c.docx"))
    with pytest.raises(MoeProbeError, match="did you mean 'topic'"):
        list(Corpus(write(tmp_path / "c.jsonl", ROWS), columns=Columns(topic="topics")))
    with pytest.raises(MoeProbeError, match="no label column 'register'"):
        list(Corpus(tmp_path / "c.jsonl", columns=Columns(labels=("register",))))


def test_group_across_topics_is_refused(tmp_path: Path) -> None:
    rows = [{**r, "group": "same"} for r in ROWS]
    with pytest.raises(MoeProbeError, match="has documents of two topics"):
        Corpus(write(tmp_path / "c.jsonl", rows)).summarize()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=80), st.integers(0, 99))
def test_splits_keep_groups_together(pairs: list[tuple[int, int]], seed: int) -> None:
    topics = [f"t{t}" for t, _ in pairs]
    groups = [f"t{t}-g{g}" for t, g in pairs]
    parts = assign_halves(topics, groups, seed=seed)
    of_group: dict[str, str] = {}
    for group, part in zip(groups, parts, strict=True):
        assert of_group.setdefault(group, part) == part
    for topic in set(topics):  # as even as whole groups allow
        halves = [p for g, p in of_group.items() if g.startswith(f"{topic}-")]
        assert abs(halves.count("discovery") - halves.count("replication")) <= 1
    order = np.random.default_rng(seed).permutation(len(pairs))
    again = assign_halves([topics[i] for i in order], [groups[i] for i in order], seed=seed)
    assert (again == parts[order]).all()


def test_shares_must_be_shares() -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        stratified_split(["t"], ["g"], shares={"a": 0.5, "b": 0.6}, seed=0)


@pytest.mark.parametrize("name", ["subtopic", "group", "split"])
def test_a_column_that_was_named_and_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    """A misspelt group column would make every document a group of its own."""
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a b", "topic": "t", "page": "1"}\n' * 2)
    misspelt: dict[str, Any] = {name: "pgae"}
    with pytest.raises(MoeProbeError, match=f"has no column 'pgae'.*--{name}-column NAME; did you mean 'page'"):
        list(Corpus(path, columns=Columns(**misspelt)))
    none: dict[str, Any] = {name: ""}
    assert len(list(Corpus(path, columns=Columns(**none)))) == 2


def test_a_line_that_lacks_its_end_is_named_itself(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a b", "topic": "t"}\n{"text": "a b", "topic": "t"\n')
    with pytest.raises(MoeProbeError, match="line 2 is not JSON"):
        list(Corpus(path, columns=Columns()))
