"""Nothing that lies in an unfinished trace is believed: what is damaged is named and recorded again, to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from attacks import resume_damage, unfinished
from attacks.common import Options
from attacks.resume_damage import contents
from attacks.unfinished import N_SHARDS, Kind

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_text
from moe_probe.recording.trace import Trace, TraceWriter, merge_traces, verify
from moe_probe.recording.trace.files import CHECKSUM
from moe_probe.recording.trace.part_files import PartEntry, part_name

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Kind, Path, dict[str, bytes]]]:
    """Each kind of unfinished trace, where one lies, and what it becomes when nothing disturbs it."""
    work, found = tmp_path_factory.mktemp("kinds"), {}
    for kind in unfinished.kinds_of(work):
        kind.begin(work / kind.name)
        shutil.copytree(work / kind.name, work / "whole" / kind.name)
        found[kind.name] = (kind, work / kind.name, contents(kind.resume(work / "whole" / kind.name)[0].root))
    return found


def rewritten(path: Path, **changes: object) -> None:
    """Let a part say something else, and call that what was written."""
    entry = json.loads(path.read_text()) | changes
    path.write_text(PartEntry(**entry).signed().model_dump_json())


def replaced(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


#: Damage to shard 1 of 4, the kinds of traces that have the file, and how the note goes on.
DAMAGED: list[tuple[str, Change, str]] = [
    ("tokens", lambda root: (root / "routing/00001.safetensors").unlink(), "routing/00001.safetensors is missing"),
    (
        "tokens",
        lambda root: flipped(root / "routing/00001.safetensors"),
        "the checksum of routing/00001.safetensors differs",
    ),
    (
        "tokens",
        lambda root: flipped(root / "hidden/layer_01/00001.safetensors"),
        "the checksum of hidden/layer_01/00001.safe",
    ),
    ("tokens", lambda root: (root / "hidden/layer_00/00001.safetensors").write_bytes(b""), "has 0 bytes instead of"),
    (
        "tokens",
        lambda root: flipped(root / "parts/00001/tokens.parquet"),
        "the checksum of parts/00001/tokens.parquet differs",
    ),
    (
        "counts",
        lambda root: flipped(root / "parts/00001/usage.parquet"),
        "the checksum of parts/00001/usage.parquet differs",
    ),
    ("import", lambda root: shutil.rmtree(root / "parts/00001"), "parts/00001/documents.parquet is missing"),
    ("import", lambda root: rewritten(root / "parts/00001.json", n_documents=1), "documents, the shard 1"),
    ("counts", lambda root: rewritten(root / "parts/00001.json", n_documents=2), "has 3 documents, the shard 2"),
    ("counts", lambda root: rewritten(root / "parts/00001.json", n_tokens=2), "tokens, the shard 2"),
    ("tokens", lambda root: rewritten(root / "parts/00001.json", index=2), "parts/00001.json is that of shard 2"),
    ("tokens", lambda root: rewritten(root / "parts/00001.json", files=[]), "does not name the file of routing"),
    (
        "tokens",
        lambda root: (root / "parts/00001.json").write_text("[" * 100_000),
        "parts/00001.json is not what was written",
    ),
    ("tokens", lambda root: (root / "parts/00001.json").unlink(), "parts/00001.json is missing"),
]


@pytest.mark.parametrize(("name", "change", "why"), DAMAGED, ids=[why[:40] for _, _, why in DAMAGED])
def test_a_damaged_shard_is_named_and_recorded_again(kinds, tmp_path: Path, name: str, change: Change, why: str) -> None:
    kind, begun, whole = kinds[name]
    root = tmp_path / "t"
    shutil.copytree(begun, root)
    n_shards = len(list((root / "parts").glob("*.json")))
    change(root)
    trace, notes = kind.resume(root)
    (note,) = notes
    assert note.startswith(f"shard 1 of {root} is damaged (") and why in note
    assert note.endswith(f"it and the {n_shards - 2} shards after it are recorded again")
    assert contents(trace.root) == whole and verify(root) == []


def test_what_two_shards_exchange_is_found(kinds, tmp_path: Path) -> None:
    """Whole shards, each with its own checksums, in the place and under the number of the other."""
    kind, begun, whole = kinds["counts"]
    root = tmp_path / "t"
    shutil.copytree(begun, root)
    for name in ("parts/00001", "parts/00001.json"):
        other = root / name.replace("00001", "00002")
        (root / name).rename(root / "aside")
        other.rename(root / name)
        (root / "aside").rename(other)
    for index in (1, 2):
        path = root / f"parts/{index:05d}.json"
        replaced(path, f"0000{3 - index}", f"0000{index}")
        replaced(path, f'"index": {3 - index}', f'"index": {index}')
        rewritten(path)
    trace, (note,) = kind.resume(root)
    assert "shard 1" in note and "parts/00001/usage.parquet has documents 6 to 8 instead of 3 to 5" in note
    assert contents(trace.root) == whole


@pytest.mark.parametrize("name", ["tokens", "counts", "import"])
def test_parts_of_earlier_versions_are_read_instead(kinds, tmp_path: Path, name: str) -> None:
    """Without checksums of their tables whole shards count; a table that does not fit the arrays is found."""
    kind, begun, whole = kinds[name]
    for damaged in (False, True):
        root = tmp_path / str(damaged)
        shutil.copytree(begun, root)
        for path in (root / "parts").glob("*.json"):
            entry = json.loads(path.read_text())
            del entry["tables"], entry["digest"]
            path.write_text(json.dumps(entry))
        if damaged:
            usage = root / "parts/00001/usage.parquet"
            table = pq.read_table(usage)
            column = table["document"].to_numpy() + (1 if name == "counts" else 0)
            selections = table["selections"].to_numpy() + 1
            table = table.set_column(0, "document", [column.astype("int32")])
            pq.write_table(table.set_column(3, "selections", [selections.astype("int32")]), usage)
        trace, notes = kind.resume(root)
        assert len(notes) == damaged and contents(trace.root) == whole


def test_damage_after_the_check_is_found_while_sealing(kinds, tmp_path: Path) -> None:
    _, begun, _ = kinds["counts"]
    shutil.copytree(begun, tmp_path / "t")
    writer = TraceWriter.resume(tmp_path / "t", unfinished.counts_manifest())
    flipped(tmp_path / "t/parts/00002/documents.parquet")
    with pytest.raises(
        MoeProbeError, match=r"shard 2 of .* was damaged: the checksum of parts/00002/documents.parquet differs"
    ):
        writer.seal()
    assert not (tmp_path / "t/documents.parquet").exists()


def test_a_changed_manifest_is_not_continued(kinds, tmp_path: Path) -> None:
    kind, begun, _ = kinds["counts"]
    shutil.copytree(begun, tmp_path / "t")
    text = (tmp_path / "t/trace.json").read_text()
    (tmp_path / "t/trace.json").write_text(text.replace('"name": "layers.0"', '"name": "layers.9"'))
    with pytest.raises(MoeProbeError, match=r"trace\.json was changed"):
        kind.resume(tmp_path / "t")


def test_a_sealed_trace_that_was_damaged_is_not_taken_for_finished(kinds, tmp_path: Path) -> None:
    kind, begun, _ = kinds["tokens"]
    shutil.copytree(begun, tmp_path / "t")
    trace, _ = kind.resume(tmp_path / "t")
    kind.resume(tmp_path / "t")  # whole: nothing to do
    flipped(trace.root / "routing/00002.safetensors")
    with pytest.raises(MoeProbeError, match=r"sealed trace .* is damaged: routing/00002.safetensors was changed"):
        kind.resume(tmp_path / "t")


@pytest.mark.parametrize("name", ["tokens", "counts"])
def test_verify_and_merge_find_counts_that_disagree(
    kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As an earlier version sealed them where a part claimed one document less: every checksum fits."""
    kind, begun, _ = kinds[name]
    shutil.copytree(begun, tmp_path / "t")
    root = kind.resume(tmp_path / "t")[0].root
    manifest = json.loads((root / "trace.json").read_text())
    manifest["shards"][1]["n_documents"] -= 1
    manifest["n_documents"] -= 1
    text = json.dumps(manifest)
    (root / "trace.json").write_text(text)
    (root / CHECKSUM).write_text(sha256_text(text) + "\n")
    (problem,) = verify(root)
    assert problem == f"documents.parquet has {3 * N_SHARDS + 3} documents, the shards {3 * N_SHARDS + 2}"
    manifest["shards"][2]["n_documents"] += 1
    manifest["n_documents"] += 1
    text = json.dumps(manifest)
    (root / "trace.json").write_text(text)
    (root / CHECKSUM).write_text(sha256_text(text) + "\n")
    if name == "tokens":  # counts alone have no row group for a shard to disagree with
        (problem,) = verify(root)
        assert problem == "tokens.parquet has documents 3 to 5 in shard 1, 3 to 4 by the manifest"
        monkeypatch.setattr("moe_probe.recording.trace.mergeable._check_disjoint", lambda traces: None)
        with pytest.raises(MoeProbeError, match="documents 3 to 5 in shard 1"):
            merge_traces([root, root], tmp_path / "merged")


def test_a_merge_notices_damaged_tables_and_copies(kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, whole = kinds["tokens"]
    traces = []
    for name in ("a", "b"):
        for relative, data in whole.items():
            path = tmp_path / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        traces.append(Trace.open(tmp_path / name))
    flipped(tmp_path / "b/usage.parquet")
    monkeypatch.setattr("moe_probe.recording.trace.mergeable._check_disjoint", lambda traces: None)
    with pytest.raises(MoeProbeError, match=r"usage.parquet is damaged: its checksum differs"):
        merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    (tmp_path / "b/usage.parquet").write_bytes(whole["usage.parquet"])
    with monkeypatch.context() as patch:  # killed before the tables
        patch.setattr("moe_probe.recording.trace.merge._Merge._join", lambda *_: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "merged", link=False)
    flipped(tmp_path / "merged/routing/00003.safetensors")
    merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "merged", mode="resume", link=False)
    assert verify(tmp_path / "merged") == []


def _raise(error: BaseException) -> None:
    raise error


def test_the_attack_finds_nothing(tmp_path: Path) -> None:
    table = resume_damage.attack(Options(tmp_path, seed=7, number=15, short=True))
    assert not table.failures
    assert sum(int(str(count)) for row in table.rows for count in row[1:4]) >= 15


def test_the_attack_notices_a_writer_that_believes_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack itself is tested: without the check of a shard, wrong seals and foreign exceptions are found."""

    def believing(root: Path, manifest: object, index: int, offset: int) -> PartEntry:
        return PartEntry.model_validate_json((root / part_name(index)).read_text())

    monkeypatch.setattr("moe_probe.recording.trace.resume.check_part", believing)
    assert resume_damage.attack(Options(tmp_path, seed=7, number=9, short=True)).failures
