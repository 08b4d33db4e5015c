"""Results of one command appear together, are held to each other, and are refused where they are mixed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.core import result_files
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.generation import differing_settings, made_by, read_together, save_together
from moe_probe.core.holder import HOLDER
from moe_probe.core.lock import LOCK
from moe_probe.core.publication import JOURNAL, STAGED, Publication, Published, settle
from moe_probe.core.results import Result, Results
from moe_probe.core.stage import read_stages
from moe_probe.runs.ledger import Ledger
from moe_probe.studies.verdicts import update_verdicts

NAMES = ("layers", "experts", "expert_topics")


def made(value: int, names: tuple[str, ...] = NAMES) -> list[Result]:
    return [Result(name, pd.DataFrame({"value": [value, value + 1]}), {"label": "topic"}, 0, name) for name in names]


def values(folder: Path) -> dict[str, int]:
    return {name: int(result.table["value"][0]) for name, result in read_together(folder).items()}


class _Stop(BaseException):
    """In place of kill -9: nothing in the package catches it."""


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> bool:
    """Publish the second generation, and stop at a change of the folder; True where it stopped."""
    done = 0

    def counted(call: Any) -> Any:
        def change(*words: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done > step:  # a dead process does not clean up either
                raise _Stop
            return call(*words, **named)

        return change

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            save_together(folder, made(10), remove=["left_out"])
        except _Stop:
            return True
    return False


def test_a_writer_that_stops_anywhere_leaves_one_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every change of the folder: readers see the old or the new results, and the next writer leaves nothing behind."""
    old, new = (
        {"layers": 0, "experts": 0, "expert_topics": 0, "left_out": 0},
        {"layers": 10, "experts": 10, "expert_topics": 10},
    )
    save_together(tmp_path / "whole", made(0, (*NAMES, "left_out")))
    step, outcomes = 0, []
    while True:
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", folder)
        stopped = stopped_at(step, monkeypatch, folder)
        seen = values(folder)
        assert seen in (old, new), step
        outcomes.append(seen == new)
        assert sorted(Results(folder)) == sorted(seen)
        settle(folder)
        assert values(folder) == seen
        assert not (folder / STAGED).exists() and not (folder / JOURNAL).exists()
        left = sorted(p.name for p in folder.iterdir() if p.name not in (LOCK, HOLDER))  # of a writer that was killed
        assert left == sorted(f"{n}.{e}" for n in seen for e in ("json", "parquet"))
        if not stopped:
            break
        step += 1
    assert outcomes == sorted(outcomes) and not outcomes[0] and outcomes[-1] and step > 10


def test_into_an_empty_folder_nothing_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(40):
        folder = tmp_path / str(step)
        stopped = stopped_at(step, monkeypatch, folder)
        assert values(folder) in ({}, {"layers": 10, "experts": 10, "expert_topics": 10})
        if not stopped:
            return
    pytest.fail("it never came to its end")


def test_an_error_while_writing_leaves_the_old(tmp_path: Path) -> None:
    save_together(tmp_path, made(0))
    bad = Result("layers", pd.DataFrame({"value": [object()]}))
    with pytest.raises(Exception, match="object"):
        save_together(tmp_path, [made(10)[1], bad])
    assert values(tmp_path) == {"layers": 0, "experts": 0, "expert_topics": 0} and not (tmp_path / STAGED).exists()
    with pytest.raises(MoeProbeError, match="not a plain file name"):
        Result("../layers", pd.DataFrame({"value": [1]})).save(tmp_path)


def test_equal_results_are_equal_bytes_and_others_have_other_ids(tmp_path: Path) -> None:
    for name, value, alpha in (("a", 0, 0.05), ("b", 0, 0.05), ("c", 1, 0.05), ("d", 0, 0.1)):
        save_together(tmp_path / name, made(value), settings={"alpha": alpha})
    bytes_of = {name: [p.read_bytes() for p in sorted((tmp_path / name).iterdir())] for name in "abcd"}
    assert bytes_of["a"] == bytes_of["b"]
    ids = {name: {r.generation.id for r in read_together(tmp_path / name).values() if r.generation} for name in "abcd"}
    assert all(len(found) == 1 for found in ids.values()) and ids["a"] == ids["b"]
    assert len(ids["a"] | ids["c"] | ids["d"]) == 3


def test_a_mix_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    save_together(tmp_path / "results", made(0))
    save_together(tmp_path / "other", made(10))
    for ending in ("json", "parquet"):
        shutil.copy(tmp_path / "other" / f"layers.{ending}", tmp_path / "results")
    with pytest.raises(MoeProbeError, match=r"are mixed.*different runs of moe-probe analyze.*Try: moe-probe analyze"):
        read_together(tmp_path / "results")


def test_a_table_is_held_to_its_json(tmp_path: Path) -> None:
    save_together(tmp_path, made(0))
    made(10)[0].table.to_parquet(tmp_path / "layers.parquet", index=False)
    with pytest.raises(MoeProbeError, match=r"not the table that layers\.json was written with"):
        Result.load(tmp_path, "layers")
    (tmp_path / "layers.json").unlink()
    with pytest.raises(MoeProbeError, match=r"layers\.json is missing"):
        read_together(tmp_path)


def test_old_results_open(tmp_path: Path) -> None:
    """Files without checksum and generation, as they were written before."""
    save_together(tmp_path, made(0))
    for path in tmp_path.glob("*.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in meta.items() if k not in ("table_sha256", "generation")}))
    results = read_together(tmp_path)
    assert set(results) == set(NAMES) and differing_settings(results) == []


def test_what_does_not_fit_together_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    save_together(folder, made(0, ("layers", "usage_verdicts")), settings={"by": "topic"})
    save_together(folder, made(1, ("matches", "carriers")), settings={"by": "topic"})
    save_together(folder, made(2, ("verdicts",)))
    assert differing_settings(read_together(folder)) == []
    save_together(folder, made(3, ("matches", "carriers")), settings={"by": "register"})
    made(4, ("layers",))[0].save(folder)
    told = " ".join(differing_settings(read_together(folder), folder))
    assert f"layers was saved apart from the other results of its command: moe-probe analyze {tmp_path}" in told
    assert f"different settings (by topic and register): moe-probe match {tmp_path}" in told
    assert "The verdicts are older than carriers" in told


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("layers", "analyze {run}"),
        ("verdicts", "verdicts"),
        ("sae_quality", "sae eval {run}"),
        ("depth_first", "tree {run} --depth-first auto"),
        ("aligned_layers", "compare"),
    ],
)
def test_results_are_grouped_by_the_command_that_makes_them(name: str, command: str) -> None:
    assert made_by(name) == command.replace(" {run}", "")


def test_a_journal_of_a_stranger_leads_nowhere(tmp_path: Path) -> None:
    """Names with folders, links as journal or as staging folder: nothing outside is touched."""
    outside, folder = tmp_path / "outside", tmp_path / "results"
    outside.mkdir()
    folder.mkdir()
    (outside / "layers.parquet").write_text("mine")
    (folder / JOURNAL).write_text(json.dumps({"files": {}, "removed": ["../outside/layers.parquet"]}))
    with pytest.raises(MoeProbeError, match=r"cannot be read.*moe-probe analyze"):
        Published.of(folder)
    settle(folder)
    (folder / STAGED).symlink_to(outside)
    save_together(folder, made(0))
    assert (outside / "layers.parquet").read_text() == "mine" and sorted(outside.iterdir()) == [outside / "layers.parquet"]
    (folder / JOURNAL).symlink_to(outside / "layers.parquet")
    save_together(folder, made(1))
    assert values(folder)["layers"] == 1 and (outside / "layers.parquet").read_text() == "mine"


def test_a_staged_file_that_was_damaged_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_together(tmp_path, made(0))
    step = 0
    while not (tmp_path / JOURNAL).exists():  # stop between the journal and the renames
        stopped_at(step, monkeypatch, tmp_path)
        step += 1
    damaged = tmp_path / STAGED / "layers.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    settle(tmp_path)
    with pytest.raises(MoeProbeError, match=r"layers.*moe-probe analyze"):
        read_together(tmp_path)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    save_together(folder, made(0, ("layers",)))
    return folder


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damaged_results_end_in_a_sentence(one: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed, cut off and put in: the package's own error, or the table as it was."""
    folder = tmp_path_factory.mktemp("damaged")
    for path in one.iterdir():
        shutil.copy(path, folder)
    if data.draw(st.booleans()):  # without the checksum, as in older results
        meta = json.loads((folder / "layers.json").read_text())
        (folder / "layers.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "table_sha256"}))
    path = folder / data.draw(st.sampled_from(["layers.json", "layers.parquet"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.sampled_from([0, 1, 1, 8]))] = data.draw(st.binary(min_size=1, max_size=4))
    path.write_bytes(content)
    try:
        Result.load(folder, "layers")
    except MoeProbeError as error:
        assert "layers" in str(error)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(
    ANY,
    st.sampled_from(["name", "params", "seed", "caption", "warnings", "citations", "generation", "table_sha256", "rows"]),
)
def test_json_of_another_shape_ends_in_a_sentence(one: Path, value: Any, key: str) -> None:
    folder = one.parent / "shape"
    folder.mkdir(exist_ok=True)
    shutil.copy(one / "layers.parquet", folder)
    meta = json.loads((one / "layers.json").read_text()) | {key: value}
    (folder / "layers.json").write_text(json.dumps(meta))
    try:
        result = Result.load(folder, "layers")
    except MoeProbeError as error:
        assert "layers" in str(error)
    else:
        assert isinstance(result.caption, str) and isinstance(result.params, dict) and result.name == "layers"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000, "[]", "5", "", "\ud800", '{"name": "\\ud800"}'])
def test_json_that_is_no_object_ends_in_a_sentence(one: Path, tmp_path: Path, text: str) -> None:
    shutil.copy(one / "layers.parquet", tmp_path)
    (tmp_path / "layers.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(MoeProbeError, match="cannot be read"):
        Result.load(tmp_path, "layers")


def test_a_table_that_declares_too_much_is_refused_before_it_is_read(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = json.loads((one / "layers.json").read_text())
    (tmp_path / "layers.json").write_text(json.dumps({k: v for k, v in meta.items() if k not in ("table_sha256", "rows")}))
    pd.DataFrame({"value": [0] * 1_000_000}).to_parquet(tmp_path / "layers.parquet")
    assert len(Result.load(tmp_path, "layers").table) == 1_000_000
    monkeypatch.setattr(result_files, "_MEMORY", 5_000_000)  # the bound is a gigabyte: a file that passes it takes a while
    monkeypatch.setattr(pd, "read_parquet", lambda path: pytest.fail("it was read"))
    with pytest.raises(MoeProbeError, match=r"it declares 0\.01 GB in a file of 0\.0"):
        Result.load(tmp_path, "layers")


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["collect", "analyze"]), ANY | st.fixed_dictionaries({"key": ANY, "seconds": ANY, "files": ANY})
    )
)
def test_a_ledger_of_another_shape_only_costs_time(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    root = tmp_path_factory.mktemp("run")
    (root / "logs").mkdir()
    (root / "logs" / "stages.json").write_text(json.dumps(content))
    ledger = Ledger(root)
    for stage in ("collect", "analyze"):
        ledger.is_done(stage, "0")
    for entry in read_stages(root).values():
        assert entry.seconds >= 0 and all(isinstance(name, str) for name in entry.files)
    (root / "new.txt").write_text("x")
    ledger.record("report", "1", [root / "new.txt"], seconds=1)
    assert Ledger(root).is_done("report", "1")


def test_a_ledger_reads_nothing_outside_the_run(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    root = tmp_path / "run"
    (root / "logs").mkdir(parents=True)
    for name in ("../outside.txt", str(tmp_path / "outside.txt"), "a\\..\\b", "a\0b"):
        entry = {"key": "0", "seconds": 1, "files": {name: "0" * 64}}
        (root / "logs" / "stages.json").write_text(json.dumps({"collect": entry}))
        assert read_stages(root) == {}


def test_further_files_are_published_with_the_tables(tmp_path: Path) -> None:
    files = save_together(tmp_path, made(0, ("costs",)), texts={"cost.json": "{}\n"})
    assert [p.name for p in files] == ["costs.parquet", "costs.json", "cost.json"] and all(p.exists() for p in files)
    assert list(Results(tmp_path)) == ["costs"]
    with Publication(tmp_path) as publication:
        publication.remove(["cost.json"])
    assert not (tmp_path / "cost.json").exists()


def test_what_mends_damaged_results_does_not_trip_over_them(tmp_path: Path) -> None:
    """A journal that cannot be read, tables that were damaged: new results are written, the report names what is left."""
    folder = tmp_path / "results"
    save_together(folder, made(0, ("usage_verdicts", "features", "layers")))
    (folder / JOURNAL).write_text("{")
    (folder / "layers.parquet").write_bytes(b"PAR1")
    (folder / "features.parquet").write_bytes(b"PAR1")
    with pytest.raises(MoeProbeError, match=r"journal cannot be read.*moe-probe analyze"):
        read_together(folder)
    assert update_verdicts(folder, made(1, ("layers",)), remove=["usage_verdicts"]) is None
    with pytest.raises(MoeProbeError, match=r"'features'.*moe-probe label"):
        read_together(folder)
    assert update_verdicts(folder, made(2, ("features",))) is None
    assert values(folder) == {"layers": 1, "features": 2}
