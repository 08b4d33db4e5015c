"""Publishing results: under the lock of the run, through no link, and with one sentence for what the disk refuses."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moe_probe.core import lock
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_file
from moe_probe.core.generation import save_together
from moe_probe.core.holder import write_holder
from moe_probe.core.lock import LOCK, LockedError
from moe_probe.core.publication import JOURNAL, STAGED, Published, settle
from moe_probe.core.results import Result, Results
from moe_probe.studies.verdicts import update_verdicts


def made(value: int) -> list[Result]:
    return [Result("layers", pd.DataFrame({"value": [value]}), {}, 0)]


def value_in(folder: Path) -> int:
    return int(Result.load(folder, "layers").table["value"][0])


def test_a_linked_staging_folder_is_not_emptied(tmp_path: Path) -> None:
    """A journal beside a link to somebody's folder: its files are neither shown, moved nor removed."""
    outside, folder = tmp_path / "outside", tmp_path / "results"
    outside.mkdir()
    folder.mkdir()
    mine = {name: outside / name for name in ("known.json", "other.json")}
    for path in mine.values():
        path.write_text("mine")
    digests = {"known.json": sha256_file(mine["known.json"]), "other.json": "0" * 64}
    (folder / STAGED).symlink_to(outside)
    (folder / JOURNAL).write_text(json.dumps({"version": 1, "files": digests, "removed": []}))
    assert not Published.of(folder).exists("known.json")
    save_together(folder, made(0))
    assert all(path.read_text() == "mine" for path in mine.values())
    assert value_in(folder) == 0 and not (folder / "known.json").exists()
    # nor is a link in it published
    (folder / STAGED).mkdir()
    (folder / STAGED / "known.json").symlink_to(mine["known.json"])
    (folder / JOURNAL).write_text(json.dumps({"version": 1, "files": digests, "removed": []}))
    settle(folder)
    assert not os.path.lexists(folder / "known.json") and mine["known.json"].read_text() == "mine"


def test_a_publication_disturbs_no_other_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that is saved alone would remove what another process is staging: the lock of the run is asked."""
    monkeypatch.setattr(lock, "_PATIENCE", 0.01)
    write_holder(tmp_path)
    (tmp_path / "results" / STAGED).mkdir(parents=True)
    (tmp_path / "results" / STAGED / "layers.parquet").write_text("being written")
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for directory in ("results", "results/asked"):
            with pytest.raises(LockedError):
                made(0)[0].save(tmp_path / directory)
        with pytest.raises(LockedError):
            update_verdicts(tmp_path / "results", made(0))
    assert (tmp_path / "results" / STAGED / "layers.parquet").read_text() == "being written"
    made(0)[0].save(tmp_path / "results")
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["layers.json", "layers.parquet"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_together(tmp_path, made(0))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", full)
        with pytest.raises(
            MoeProbeError, match=r"no space is left for .*layers\.parquet: .* is kept\. Try: free some space"
        ):
            save_together(tmp_path, made(1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(MoeProbeError, match=r"no space is left for"):
            save_together(tmp_path, made(1))
    assert value_in(tmp_path) == 0 and not (tmp_path / STAGED).exists()


def test_a_result_put_in_its_place_while_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_together(tmp_path, made(7))
    monkeypatch.setattr(Published, "path", lambda self, name: self.directory / STAGED / name)
    with monkeypatch.context() as patch:
        patch.setattr(Result, "load", lambda _, name: made(7)[0])
        assert Results(tmp_path)["layers"].table["value"][0] == 7
