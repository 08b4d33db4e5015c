"""Damaged files of traces, runs and SAEs: each is read or refused in one sentence; the readers of `scripts/attack.py --fuzz`."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from attacks.mutate import mutate
from attacks.readers import Reader
from attacks.readers_runs import READERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_probe.core.errors import MoeProbeError

#: Readers whose input is made in a moment; the script has all.
FAST = ("trace-counts", "manifest", "sparsify", "checkpoint", "run-yaml", "answers", "models-table")
CHOSEN = {reader.name: reader for reader in READERS if reader.name in FAST}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, reader in CHOSEN.items():
        made[name] = tmp_path_factory.mktemp(name) / "input"
        made[name].mkdir()
        reader.prepare(made[name])
        reader.read(made[name])  # undamaged
    return made


def damaged(reader: Reader, whole: Path, number: int, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    names = [p.relative_to(whole).as_posix() for p in sorted(whole.rglob("*")) if p.is_file()]
    mutate(random.Random(number), folder, names)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=12, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 2**32))
def test_damage_is_read_or_refused(name: str, inputs: dict[str, Path], tmp_path: Path, number: int) -> None:
    reader = CHOSEN[name]
    damaged(reader, inputs[name], number, tmp_path / "run" / "input")
    try:
        reader.read(tmp_path / "run" / "input")
    except MoeProbeError as error:
        text = str(error)
        assert text.splitlines() == [text]
        assert len(text) < 4000


def test_a_message_fits_on_one_line() -> None:
    error = MoeProbeError("a\nb\x1b[31m", "x" * 10_000, "do\r\nthis")
    assert str(error).startswith("a b\\x1b[31m: xxx")
    assert str(error).endswith("… Try: do this.") or str(error).endswith("…. Try: do this.")
    assert len(str(error)) < 1300
