"""Files of SGLang's expert-distribution recorder, of every mode and version."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import Evidence
from moe_probe.recording.importers import ImportOptions, import_sglang_distribution
from moe_probe.recording.importers.recordings import Recording
from moe_probe.recording.importers.sglang_distribution import has_tokens, read_dump, recording_of
from moe_probe.recording.importers.sglang_tokens import LeftOut, prompt_records
from moe_probe.recording.trace import verify

PASSES = np.array(
    [[[0, 0, 0, 0], [3, 1, 0, 2], [0, 2, 2, 2]], [[0, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]]
)  # layer 0 is dense
TOTAL = {1: [4, 1, 1, 2], 2: [1, 2, 2, 3]}
TRIVIAL = torch.arange(4).repeat(3, 1)
#: Physical experts 0 to 5 of four logical ones: two are there twice, and none stands where its number says.
MOVED = torch.tensor([[3, 2, 1, 0, 0, 1]] * 3)


def dump(folder: Path, data: Any, name: str = "expert_distribution_recorder_1.5.pt") -> Path:
    path = folder / name
    if name.endswith(".pt"):
        torch.save(data, path)
    else:
        path.write_text(json.dumps(data) if name.endswith(".json") else data)
    return path


def counted(path: Path, **options: Any) -> Recording:
    return recording_of(read_dump(path), path, **options)


def numbers(recording: Recording) -> dict[int, list[int]]:
    return {layer: counts.tolist() for layer, counts in recording.selections.items()}


def stat(counts: Any = PASSES, *, version: str = "new") -> dict[str, Any]:
    data = {"rank": 0, "logical_count": torch.as_tensor(counts, dtype=torch.int32)}
    return data if version == "old" else {**data, "average_utilization_rate_over_window": None}


@pytest.mark.parametrize("version", ["old", "new"])
@pytest.mark.parametrize("zeros", [0, 98])  # a buffer of a hundred passes that is not full
def test_stat(tmp_path: Path, version: str, zeros: int) -> None:
    padded = np.concatenate([PASSES, np.zeros((zeros, *PASSES.shape[1:]), dtype=int)])
    recording = counted(dump(tmp_path, stat(padded, version=version)))
    assert numbers(recording) == TOTAL and recording.empty == (0,)
    assert recording.notes == ()


def test_a_full_buffer_may_have_lost_passes(tmp_path: Path) -> None:
    (note,) = counted(dump(tmp_path, stat(np.concatenate([PASSES] * 50)))).notes
    assert note.startswith("a buffer of 100 forward passes is full")


def test_json_and_files_without_passes(tmp_path: Path) -> None:
    for counts in (PASSES.tolist(), PASSES.sum(axis=0).tolist()):
        assert numbers(counted(dump(tmp_path, {"logical_count": counts}, "counts.json"))) == TOTAL
    assert numbers(counted(dump(tmp_path, stat(PASSES.sum(axis=0))))) == TOTAL


def test_csv_of_the_first_version(tmp_path: Path) -> None:
    rows = [f"{layer},{e},{n}" for layer, counts in TOTAL.items() for e, n in enumerate(counts) if (layer, e) != (2, 3)]
    path = dump(
        tmp_path, "\n".join(["layer_id,expert_id,count", *rows[::-1]]) + "\n", "expert_distribution_rank0_timestamp1.csv"
    )
    guessed = counted(path)
    assert (
        numbers(guessed) == {1: [4, 1, 1, 2], 2: [1, 2, 2, 0]} and "guessed from the largest id seen, 4" in guessed.notes[0]
    )
    given_ = counted(path, num_experts=6)
    assert numbers(given_) == {1: [4, 1, 1, 2, 0, 0], 2: [1, 2, 2, 0, 0, 0]} and given_.notes == ()
    assert counted(path, num_experts={1: 4, 2: 5}).selections[2].tolist() == [1, 2, 2, 0, 0]
    with pytest.raises(MoeProbeError, match="has expert 3 in layer 1: --num-experts gives it 3"):
        counted(path, num_experts=3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,0,-3", "row 2 has no count"),
        ("1,0,nan", "row 2 has no count"),
        ("1,0,1\n1,0,2", "row 3 names expert 0 of layer 1 again"),
        ("1,70000,1", "70,001 experts"),
        ("99999999,1,1", "99,999,999|100,000,000 layers"),
        ("1,0,0", "no selection"),
    ],
)
def test_bad_csv(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        counted(dump(tmp_path, f"layer_id,expert_id,count\n{rows}\n", "a.csv"))


def per_pass(*, table: torch.Tensor = TRIVIAL) -> dict[str, Any]:
    """Spread the counts of logical experts over their copies, as a server with redundant experts does."""
    records = []
    for number, counts in enumerate(PASSES):
        physical = torch.zeros(table.shape, dtype=torch.int32)
        for layer, row in enumerate(counts):
            for expert, n in enumerate(row):
                copies = torch.nonzero(table[layer] == expert).ravel().tolist()
                for i in range(n):
                    physical[layer, copies[i % len(copies)]] += 1
        records.append({"forward_pass_id": number, "rank": 0, "gatherer_key": "primary", "global_physical_count": physical})
    return {"records": records, "last_physical_to_logical_map": table}


@pytest.mark.parametrize("table", [TRIVIAL, MOVED])
def test_per_pass(tmp_path: Path, table: torch.Tensor) -> None:
    recording = counted(dump(tmp_path, per_pass(table=table)))
    assert numbers(recording) == TOTAL and recording.empty == (0,)
    assert len(recording.notes) == (table is MOVED)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_placement_of_experts_gives_the_counts_of_the_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    extra = data.draw(st.lists(st.integers(0, 3), max_size=4))
    rows = [data.draw(st.permutations([0, 1, 2, 3, *extra])) for _ in range(3)]
    recording = counted(dump(tmp_path_factory.mktemp("any"), per_pass(table=torch.tensor(rows))))
    assert numbers(recording) == TOTAL


def per_token(prompts: list[int], *, k: int = 2, table: torch.Tensor = TRIVIAL, **more: Any) -> dict[str, Any]:
    """Record one pass over prompts of these lengths; slots past k are -1, and so is the dense layer."""
    n = sum(prompts)
    generator = np.random.default_rng(n)
    chosen = np.full((3, n, 8), -1)
    for layer in (1, 2):
        chosen[layer, :, :k] = [generator.choice(table.shape[1], k, replace=False) for _ in range(n)]
    record = {
        "forward_pass_id": 1,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": list(range(100, 100 + n)),
        "positions": [p for length in prompts for p in range(length)],
        "extend_seq_lens": prompts,
        "forward_mode": 1,
        "topk_ids_of_layer": torch.tensor(chosen, dtype=torch.int32),
        "misc_objects": [],
        "global_physical_count": torch.zeros(table.shape, dtype=torch.int32),
    }
    return {"records": [{**record, **more}], "last_physical_to_logical_map": table}


def prompts_of(path: Path) -> tuple[list[Any], LeftOut]:
    left_out, data = LeftOut(), read_dump(path)
    assert has_tokens(data)
    return list(prompt_records(data, path, {"topic": "law", "document": path.stem}, left_out)), left_out


def test_per_token(tmp_path: Path) -> None:
    path = dump(tmp_path, per_token([3, 4]))
    documents, left_out = prompts_of(path)
    chosen = read_dump(path)["records"][0]["topk_ids_of_layer"].numpy().transpose(1, 0, 2)
    assert [d.labels["document"] for d in documents] == [f"{path.stem}#1", f"{path.stem}#2"]
    assert np.concatenate([d.experts for d in documents]).tolist() == chosen.tolist()
    assert [d.position.tolist() for d in documents] == [[0, 1, 2], [0, 1, 2, 3]]
    assert [d.token_id.tolist() for d in documents] == [[100, 101, 102], [103, 104, 105, 106]]
    assert left_out == LeftOut() and left_out.notes() == ()
    assert documents[1].where(0).startswith("record 1, token 4 of")


def test_ids_of_tokens_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    documents, _ = prompts_of(path := dump(tmp_path, per_token([5], table=MOVED)))
    physical = read_dump(path)["records"][0]["topk_ids_of_layer"].numpy().transpose(1, 0, 2)
    expected = np.where(physical < 0, -1, MOVED[0].numpy()[physical])
    assert documents[0].experts.tolist() == expected.tolist()


def test_what_belongs_to_no_prompt_is_left_out_and_counted(tmp_path: Path) -> None:
    whole = per_token([3, 4])
    decode = per_token([2, 2], forward_mode=2, extend_seq_lens=None)["records"][0]
    chunk = per_token([3, 2], positions=[4, 5, 6, 0, 1])["records"][0]
    mixed = per_token([3, 1], positions=[0, 1, 2, 9], forward_mode=3)["records"][0]
    verify = per_token([2, 2], forward_mode=5)["records"][0]
    padded = per_token([2, 3])["records"][0]
    padded["extend_seq_lens"] = [2]
    padded["topk_ids_of_layer"][:, 1] = -1
    whole["records"] += [decode, chunk, mixed, verify, padded]
    documents, left_out = prompts_of(dump(tmp_path, whole))
    assert [len(d.position) for d in documents] == [3, 4, 2, 3, 1]
    assert left_out == LeftOut(generated=8, continued=4, padding=4)
    assert [note.split()[2] for note in left_out.notes()] == ["8", "4", "4"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"positions": [0, 1]}, "record 1 of .* positions for"),
        ({"positions": [0, 2, 1]}, "positions that do not follow each other: token 1"),
        ({"extend_seq_lens": [9]}, r"record 1 of .* prompts of \[9\] tokens"),
        ({"extend_seq_lens": [-1, 3]}, "prompts of"),
        ({"extend_seq_lens": [2**62, 2**62, 2**62, 2**62]}, "prompts of"),
        ({"extend_seq_lens": ["a"]}, "extend_seq_lens in record 1 of .* more than numbers"),
        ({"topk_ids_of_layer": torch.zeros(3, 2, 8, dtype=torch.int32)}, r"experts of shape \(3, 2, 8\)"),
        ({"topk_ids_of_layer": torch.full((3, 3, 8), 4)}, "names expert 4 of 4"),
        ({"topk_ids_of_layer": torch.full((3, 3, 8), -2)}, "names expert -2 of 4"),
        ({"topk_ids_of_layer": torch.zeros(3, 3, 8)}, "positions for|experts"),
        ({"input_ids": [0.5, 1, 2]}, "input_ids in record 1 of .* whole numbers"),
        ({"input_ids": None}, "input_ids in record 1 of .* is no array"),
    ],
)
def test_bad_records_of_tokens(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        prompts_of(dump(tmp_path, per_token([3], **more)))


def spoilt(what: str) -> Any:
    data = per_pass()
    record = data["records"][0]
    if what == "no map":
        del data["last_physical_to_logical_map"]
    elif what == "map past its experts":
        data["last_physical_to_logical_map"] = TRIVIAL + 1
    elif what == "map negative":
        data["last_physical_to_logical_map"] = TRIVIAL - 1
    elif what == "map of one layer":
        data["last_physical_to_logical_map"] = TRIVIAL[0]
    elif what == "other shape":
        record["global_physical_count"] = torch.ones(3, 5)
    elif what == "no count":
        del record["global_physical_count"]
    elif what == "record no object":
        data["records"] = [3]
    elif what == "no records":
        data["records"] = []
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spoilt("no map"), "no last_physical_to_logical_map"),
        (spoilt("map past its experts"), "names expert 4: a layer has 4"),
        (spoilt("map negative"), "names expert -1"),
        (spoilt("map of one layer"), r"has the shape \(4,\)"),
        (spoilt("other shape"), r"record 1 of .* has the shape \(3, 5\)"),
        (spoilt("no count"), "record 1 of .* no global_physical_count"),
        (spoilt("record no object"), "record 1 of .* no object"),
        (spoilt("no records"), "no records"),
        (stat(-PASSES), "logical_count of .* negative count: -3"),
        (stat(PASSES[0, 0]), r"has the shape \(4,\)"),
        (stat(PASSES[:0]), r"has the shape \(0, 3, 4\)"),
        (stat(0 * PASSES), "no selection"),
        ({"logical_count": torch.full((1, 2, 4), float("nan"))}, "not finite"),
        ({"logical_count": torch.full((1, 2, 4), 0.5)}, "not whole"),
        ({"logical_count": torch.full((1, 2, 4), 2**62)}, "too large"),
        ({"logical_count": torch.ones(1, 2, 4, dtype=torch.bool)}, "type torch.bool"),
        ({"logical_count": torch.ones(20_000, 2)}, "20,000 layers"),
        ({"logical_count": torch.ones(2, 70_000)}, "70,000 experts"),
        ({"logical_count": torch.ones(1, 1, 1).expand(9, 9000, 60_000)}, "more elements than are stored"),
        ({"logical_count": torch.ones(2, 4).to_sparse()}, "more elements than are stored"),
        ({"logical_count": "text"}, "is no array: it is str"),
        ({"physical_to_logical_map": TRIVIAL}, "says where experts are placed"),
        ({"other": 1}, "neither logical_count nor records, but other"),
        ([1, 2], "neither logical_count nor records, but list"),
    ],
)
def test_bad_dumps(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        counted(dump(tmp_path, data))


@pytest.mark.parametrize(
    ("counts", "message"),
    [([[1, 2], [3]], "unequal lengths"), ([[1, "a"]], "more than numbers"), ([[1, None]], "more than numbers")],
)
def test_bad_json(tmp_path: Path, counts: Any, message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        counted(dump(tmp_path, {"logical_count": counts}, "a.json"))


class Harm:
    """A pickle of it would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def test_files_that_could_run_code_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(MoeProbeError, match="loading it could run code"):
        counted(dump(tmp_path, {"logical_count": Harm(mark)}))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"logical_count": Harm(mark)}))
    with pytest.raises(MoeProbeError, match=r"not a file of torch\.save"):
        counted(tmp_path / "plain.pt")
    assert not mark.exists()


def test_damaged_and_compressed_archives(tmp_path: Path) -> None:
    path = dump(tmp_path, stat())
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(MoeProbeError, match=r"not a file of torch\.save"):
            counted(path)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    path.write_bytes(packed.getvalue())
    with pytest.raises(MoeProbeError, match="is compressed"):
        counted(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_ends_in_anything_but_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = dump(tmp_path_factory.mktemp("bad"), data.draw(st.sampled_from([stat(), per_pass()])))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + data.draw(st.binary(min_size=1, max_size=6)) + whole[at + 6 :])
    try:
        recording = counted(path)
    except MoeProbeError:
        return
    assert all((counts >= 0).all() and counts.any() for counts in recording.selections.values())


def balanced(seed: int, *, factor: int = 1) -> np.ndarray:
    """Count top-2 routing of 40 tokens in each of three passes, shape (pass, layer, expert); layer 0 is dense."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((4, 3, 32), dtype=int)
    for one, layer in product(range(3), (1, 2)):
        np.add.at(counts[one, layer], np.concatenate([rng.choice(32, 2, replace=False) for _ in range(40)]), factor)
    return counts


def write_topics(folder: Path, factor: int = 1) -> list[np.ndarray]:
    counts = [balanced(seed, factor=factor) for seed in range(3)]
    for name, one in zip(("a", "b", "c"), counts, strict=True):
        dump(folder, stat(one), f"{name}.pt")
    (folder / "documents.csv").write_text("file,topic\na.pt,law\nb.pt,law\nc.pt,math\n")
    return [one.sum(axis=0)[1:] for one in counts]


@pytest.mark.parametrize("documents", [False, True])
def test_counts_become_a_trace(tmp_path: Path, documents: bool) -> None:
    counts = write_topics(tmp_path)
    options = ImportOptions(top_k=2)
    trace = import_sglang_distribution(tmp_path, tmp_path / "trace", files_are_documents=documents, options=options)
    expected = np.array(counts if documents else [counts[0] + counts[1], counts[2]])
    assert (trace.usage().selections == expected).all() and verify(trace.root) == []
    assert trace.documents["n_tokens"].tolist() == ([120] * 3 if documents else [240, 120])
    assert trace.manifest.evidence is (Evidence.DOCUMENTS if documents else Evidence.COUNTS)
    assert [layer.layer for layer in trace.layers] == [1, 2]
    assert trace.warnings == ("left out as dense: layers without any selection (0)",)


def test_ranks_that_count_the_same_tokens_are_noticed(tmp_path: Path) -> None:
    write_topics(tmp_path, factor=4)
    trace = import_sglang_distribution(tmp_path, tmp_path / "trace", options=ImportOptions(top_k=2))
    (note,) = [note for note in trace.warnings if "every count is a multiple of 4" in note]
    assert note.startswith("a.pt, b.pt, c.pt: ")
    again = import_sglang_distribution(tmp_path, tmp_path / "again", options=ImportOptions(top_k=2))
    assert again.n_tokens == trace.n_tokens  # files of the trace below the folder are no recordings


def test_top_k_is_needed_and_has_to_fit(tmp_path: Path) -> None:
    path = dump(tmp_path, stat(balanced(0)))
    with pytest.raises(UsageError, match="experts per token is not known"):
        import_sglang_distribution(path, tmp_path / "t", topic="law")
    with pytest.raises(MoeProbeError, match="no multiple of --top-k 7"):
        import_sglang_distribution(path, tmp_path / "t", topic="law", options=ImportOptions(top_k=7))


def test_tokens_become_a_trace_with_words(tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    arrays = []
    for name, lengths in (("a", [30, 40]), ("b", [50])):
        data = per_token(lengths)
        arrays.append(data["records"][0]["topk_ids_of_layer"].numpy()[1:, :, :2].transpose(1, 0, 2))
        data["records"].append(per_token([2, 2], forward_mode=2, extend_seq_lens=None)["records"][0])
        dump(folder, data, f"{name}.pt")
    (folder / "documents.csv").write_text("file,topic\na.pt,law\nb.pt,math\n")
    trace = import_sglang_distribution(folder, tmp_path / "trace")
    assert trace.manifest.evidence is Evidence.WORDS and verify(trace.root) == []
    assert (np.concatenate([chunk.experts for chunk in trace.iter_routing()]) == np.concatenate(arrays)).all()
    assert trace.documents["document"].tolist() == ["a#1", "a#2", "b#1"]
    assert trace.documents["topic"].tolist() == ["law", "law", "math"]
    assert [(layer.layer, layer.num_experts) for layer in trace.layers] == [(1, 4), (2, 4)]
    assert any("8 generated tokens" in note for note in trace.warnings)
    for more in ({"files_are_documents": True}, {"options": ImportOptions(top_k=2)}):
        with pytest.raises(UsageError, match="cannot be used here"):
            import_sglang_distribution(folder, tmp_path / "t", **more)


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    given_: dict[str, Any] = {"topic": "law", "options": ImportOptions(top_k=2)}
    dump(tmp_path, stat(balanced(0)), "a.pt")
    dump(tmp_path, stat(balanced(0)), "b.pt")
    with pytest.raises(MoeProbeError, match=r"b\.pt has the same counts as .*a\.pt: tensor-parallel ranks"):
        import_sglang_distribution(tmp_path, tmp_path / "t", **given_)
    dump(tmp_path, per_token([30]), "b.pt")
    with pytest.raises(MoeProbeError, match=r"b\.pt has tokens, .*a\.pt has counts only"):
        import_sglang_distribution(tmp_path, tmp_path / "t", **given_)
    dump(tmp_path, per_token([30]), "a.pt")
    with pytest.raises(MoeProbeError, match=r"b\.pt has the same tokens and experts as .*a\.pt"):
        import_sglang_distribution(tmp_path, tmp_path / "t", topic="law")
    moved = import_sglang_distribution(
        dump(tmp_path, per_token([30], table=TRIVIAL.flip(1)), "a.pt"), tmp_path / "m", topic="a"
    )
    assert any("not in their own order" in note for note in moved.warnings)
    dump(tmp_path, per_token([30], table=torch.arange(9).repeat(3, 1)), "a.pt")
    with pytest.raises(MoeProbeError, match=r"b\.pt is of another model .*3 layers, 4 experts"):
        import_sglang_distribution(tmp_path, tmp_path / "t", topic="law")


def test_first_versions_files_of_ranks_are_added_up(tmp_path: Path) -> None:
    for rank, seed in enumerate((0, 1)):
        counts = balanced(seed).sum(axis=0)
        rows = [f"{layer},{expert},{n}" for layer in (1, 2) for expert, n in enumerate(counts[layer])]
        dump(tmp_path, "\n".join(["layer_id,expert_id,count", *rows]), f"expert_distribution_rank{rank}_timestamp1.csv")
    options = ImportOptions(num_experts=32, top_k=2)
    trace = import_sglang_distribution(tmp_path, tmp_path / "t", topic="law", options=options)
    assert (trace.usage().selections[0] == (balanced(0) + balanced(1)).sum(axis=0)[1:]).all()


def test_the_command(tmp_path: Path) -> None:
    path = dump(tmp_path, stat(balanced(0)))
    words = ["import", str(path), "--format", "sglang-distribution", "--out", str(tmp_path / "t")]
    done = CliRunner().invoke(app, [*words, "--topic", "law", "--top-k", "2"])
    assert done.exit_code == 0 and "left out as dense" in done.output
    for more, message in (
        (["--topic", "law", "--force"], "experts per token is not known"),
        (["--format", "table", "--files-are-documents", "--force"], "cannot be used with --format table"),
        (["--format", "sglang-dist", "--force"], "--format sglang-dist is not known"),
    ):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 2 and message in " ".join(done.output.split())


def test_the_example_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(__file__).parents[2].joinpath("docs/formats.md").read_text(encoding="utf-8")
    example = text.partition("### SGLang's expert")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    assert capsys.readouterr().out.startswith("counts [6, 6]")
    assert namespace["trace"].usage().selections[:, 0].tolist() == [[4, 1, 3, 4], [4, 3, 1, 4]]


def test_lists_that_unfold_are_refused(tmp_path: Path) -> None:
    """A pickle stores a list that comes again once: kilobytes may stand for more numbers than there is memory."""
    rows: list[Any] = [1] * 100
    for _ in range(5):
        rows = [rows] * 100
    torch.save({"rank": 0, "logical_count": rows}, tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 10_000
    with pytest.raises(MoeProbeError, match="its lists have more than"):
        import_sglang_distribution(tmp_path / "bomb.pt", tmp_path / "t", topic="x", options=ImportOptions(top_k=2))
