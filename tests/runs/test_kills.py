"""kill -9 at any moment, the short form: a few kills of an import, each continued and compared with an undisturbed one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pandas as pd
from attacks import forks, kill_places, kills
from attacks.common import Options

from moe_probe.core.generation import save_together
from moe_probe.core.results import Result


def test_killed_imports_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    table = kills.attack(Options(tmp_path, seed=1, number=3, short=True))
    assert not table.failures, table.markdown()
    assert [row[0] for row in table.rows] == [place.name for place in kill_places.PLACES if place.short]
    for _, trials, killed, lost, wrong, refused in table.rows:
        assert trials == 3 and killed and (lost, wrong, refused) == (0, 0, 0)


def test_the_attack_sees_what_is_lost_and_wrong(tmp_path: Path) -> None:
    """Else it would find nothing whatever the program does."""
    log, folder = tmp_path / "log.txt", tmp_path / "out"

    def careless() -> int:
        folder.mkdir()
        (folder / "a.txt").write_text("half")
        (folder / "b.txt").unlink(missing_ok=True)
        (folder / "a.txt").write_text("whole")
        return 0

    done = forks.forked(careless, log)
    assert (done.killed, done.status) == (False, 0) and log.with_suffix(".steps").read_text() == "2"
    expected = kills.digests(folder)
    (folder / "a.txt").unlink()
    folder.rmdir()
    killed = forks.forked(careless, log, kill=forks.Kill(step=1))
    assert killed.killed and kills.digests(folder).keys() == expected.keys() and kills.digests(folder) != expected

    outcome = forks.forked(lambda: max(itertools.repeat(0)), log, kill=forks.Kill(seconds=0.05), timeout=60)
    assert outcome.killed and outcome.seconds < 30
    failed = forks.forked(lambda: 1 // 0, log)
    assert failed.status == 70 and "ZeroDivisionError" in failed.output


def test_readers_who_see_half_are_noticed(tmp_path: Path) -> None:
    for value in (0, 1):
        made = [Result(name, pd.DataFrame({"v": [value]})) for name in ("layers", "experts")]
        save_together(tmp_path / str(value) / "run" / "results", made)
    assert set(kills.results_seen(tmp_path / "0")) == {"run/results/layers", "run/results/experts"}
    for ending in ("json", "parquet"):
        (tmp_path / "0/run/results" / f"layers.{ending}").write_bytes(
            (tmp_path / "1/run/results" / f"layers.{ending}").read_bytes()
        )
    assert re.search("are mixed", kills.results_seen(tmp_path / "0")[""])
