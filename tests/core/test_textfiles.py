"""The one opener: encodings, compression, JSON in all its layouts, globs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.textfiles import (
    BadLineError,
    expand,
    format_of,
    open_text,
    read_json,
    read_json_rows,
    read_stdin,
    read_text,
    scan_json_rows,
)

ROWS = [{"id": "a", "text": "x² “q”\nz"}, {"id": "b", "text": "Привет"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["c.jsonl", "C.JSONL.GZ", "c.jsonl.zst", "no-ending"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_content_decides_not_the_name(tmp_path: Path, name: str, pack, mark: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(pack(mark + LINES.encode()))
    assert read_text(path) == LINES
    assert list(read_json_rows(path)) == [(1, ROWS[0]), (2, ROWS[1])]


def test_concatenated_members_and_their_marks(tmp_path: Path) -> None:
    path, mark = tmp_path / "c.jsonl", b"\xef\xbb\xbf"
    for pack in (bytes, gzip.compress, zstd):
        path.write_bytes(b"".join(pack(mark + json.dumps(row).encode() + b"\n") for row in ROWS))
        assert [row for _, row in read_json_rows(path)] == ROWS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps(ROWS, indent=2) + "\n\n",
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "]",
        "[" + json.dumps(ROWS[0]) + ",\n" + json.dumps(ROWS[1]) + "\n]",
        "\n".join(json.dumps(r, indent=1) for r in ROWS),
        "\n\n" + LINES,
        "\ufeff" + json.dumps(ROWS),
    ],
)
@pytest.mark.parametrize("name", ["c.json", "c.json.gz", "c.jsonl"])
def test_arrays_lines_and_pretty_printing_are_one(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [row for _, row in read_json_rows(tmp_path / name)] == ROWS


def test_lines_of_elements_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('[\n {"id": 1},\n\n {"id": 2,\n  "text": "x"}\n]')
    assert list(read_json_rows(path)) == [(2, {"id": 1}), (4, {"id": 2, "text": "x"})]
    for broken, line in (('[\n {"id": 1},\n {"id": oh}\n]', 3), ('[\n {"id": 1}\n {"id": 2}\n]', 2)):
        path.write_text(broken)
        with pytest.raises(MoeProbeError, match=f"line {line} is not JSON"):
            list(read_json_rows(path))
    path.write_text('[\n {"id": 1},\n')
    with pytest.raises(MoeProbeError, match="cut off"):
        list(read_json_rows(path))
    path.write_text("[]")
    assert list(read_json_rows(path)) == []


def test_lists_in_lines_stay_lists(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("[1]\n[2]\n")
    assert list(read_json_rows(path)) == [(1, [1]), (2, [2])]
    assert read_json(write(tmp_path / "one.json", b'\xef\xbb\xbf{"a": [1]}')) == {"a": [1]}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BAD = [
    (b'{"a": "caf\xe9"}', "line 2, byte 11 is not UTF-8 text.*0xE9.*iconv -f WINDOWS-1252"),
    (b"{nothing", "line 2 is not JSON"),
    (rb'{"a": "\ud83d"}', "line 2 has characters that are not text.*in 'a'"),
    (rb'{"a": ["\u0000"]}', "line 2 has characters"),
    (rb'{"\udc00": 1}', "name of a field"),
    (b'{"a": "x\x00"}', "line 2 is not JSON"),
    (b"[" * 100_000, "line 2 is nested too deep"),
    (b'{"a": ' + b"9" * 5000 + b"}", "line 2 is not JSON"),
    (b'{"a": 1, "b": 2, "a": 3}', "line 2 names the field 'a' twice"),
    (b'{"a": 1} {"a": 2}', "more text follows"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_bad_lines_are_named_and_can_be_passed_over(tmp_path: Path, line: bytes, message: str, pack) -> None:
    path = write(tmp_path / "c.jsonl", pack(b'{"a": 1}\n' + line + b'\n{"a": 2}\n'))
    with pytest.raises(MoeProbeError, match=message):
        list(read_json_rows(path))
    rows = list(scan_json_rows(path))
    assert [value for _, value in rows if not isinstance(value, BadLineError)] == [{"a": 1}, {"a": 2}] and rows[1][
        1
    ].line == 2


@pytest.mark.parametrize("pair", [r'{"a": "\ud83d\ude00"}', '{"a": "\\\\u0000"}'])
def test_what_only_looks_bad_is_read(tmp_path: Path, pair: str) -> None:
    assert list(read_json_rows(write(tmp_path / "c.jsonl", pair.encode()))) == [(1, json.loads(pair))]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_other_encodings_are_named(tmp_path: Path, encoding: str, pack) -> None:
    path = write(tmp_path / "c.csv", pack("id,text\n1,word\n".encode(encoding)))
    with pytest.raises(MoeProbeError, match=rf"c.csv is {encoding[:6].upper()} text.*iconv -f {encoding[:6].upper()}"):
        read_text(path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_cut_and_damaged_files(tmp_path: Path, pack) -> None:
    whole = pack(bytes(range(1, 120)) * 50)
    for data in (whole[:-20], whole[: len(whole) // 2], whole[:12] + b"\xff" * 30, whole + b"trailing bytes"):
        with pytest.raises(MoeProbeError, match="damaged or cut off"):
            read_text(write(tmp_path / "c.gz", data))


def test_other_packing_and_nothing_to_open(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.jsonl", "w") as archive:
        archive.writestr("c", LINES)
    with pytest.raises(MoeProbeError, match=r"ZIP archive.*unzip c\.jsonl"):
        read_text(tmp_path / "c.jsonl")
    with pytest.raises(MoeProbeError, match="bzip2"):
        read_text(write(tmp_path / "c.bz2", bz2.compress(b"x")))
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(MoeProbeError, match="cannot be read"):
            read_text(path)
    assert read_text(write(tmp_path / "empty.gz", b"")) == ""


def test_byte_of_a_long_text_is_on_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.txt", "x²\nü".encode() + b"\xff\n")
    with pytest.raises(BadLineError, match="line 2, byte 3 is not UTF-8"):
        read_text(path)
    with open_text(path) as lines, pytest.raises(BadLineError, match="line 2, byte 3 is not UTF-8"):
        list(lines)


def test_standard_input_is_a_file_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"\xef\xbb\xbfThe acid.", gzip.compress(b"The acid.")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert read_stdin() == "The acid."
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    with pytest.raises(MoeProbeError, match=r"standard input, line 1, byte 4 is not UTF-8.*iconv -f WINDOWS-1252 -t"):
        read_stdin()


def test_what_to_type_is_quoted(tmp_path: Path) -> None:
    path = write(tmp_path / "my file.csv.gz", gzip.compress("a,b\n".encode("utf-16")))
    with pytest.raises(
        MoeProbeError, match=r"unpack it, then iconv -f UTF-16 -t UTF-8 'my file\.csv' > 'utf8-my file\.csv'"
    ):
        read_text(path)


def test_expansion(tmp_path: Path) -> None:
    names = [
        "a.jsonl",
        "deep/b.JSONL.GZ",
        "deep/er/c.jsonl.zst",
        "deep/notes.md",
        ".hidden/x.jsonl",
        "__MACOSX/x.jsonl",
        "deep/._b.jsonl",
        "__dunder__.jsonl",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")

    def found(spec: str, *endings: str) -> tuple[list[str], list[str]]:
        files = expand(tmp_path / spec, endings)
        read, left_out = ([str(f.relative_to(tmp_path)) for f in one] for one in (files.files, files.left_out))
        return read, left_out

    assert found("", ".jsonl") == (
        ["__dunder__.jsonl", "a.jsonl", "deep/b.JSONL.GZ", "deep/er/c.jsonl.zst"],
        ["deep/notes.md"],
    )
    assert found("*.jsonl") == (["__dunder__.jsonl", "a.jsonl"], [])
    assert found("**/*.jsonl*", ".jsonl")[0] == ["__dunder__.jsonl", "a.jsonl", "deep/er/c.jsonl.zst"]
    assert found("d*", ".jsonl") == (["deep/b.JSONL.GZ", "deep/er/c.jsonl.zst"], ["deep/notes.md"])
    (tmp_path / "[odd].jsonl").write_text("{}")
    assert found("[odd].jsonl") == (["[odd].jsonl"], [])
    for spec, message in (("none.jsonl", "there is nothing at"), ("*.none", "no file matches")):
        with pytest.raises(MoeProbeError, match=message):
            expand(tmp_path / spec)
    assert [format_of(n) for n in ("X.TSV.GZ", "a.b.zst", "a.jsonl.zstd", "gz")] == [".tsv", ".b", ".jsonl", ""]
