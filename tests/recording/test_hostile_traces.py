"""Damaged files of traces, runs and SAEs: each is read or refused in one sentence; the readers of `scripts/attack.py --fuzz`."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attacks.mutate import mutate
from attacks.readers import Reader
from attacks.readers_runs import READERS
from attacks.readers_signed import READERS as SIGNED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_probe.core import textfiles, untrusted
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import past_highest

#: Readers whose input is made in a moment; the script has all.
FAST = ("trace-counts", "manifest", "sparsify", "checkpoint", "run-yaml", "answers", "models-table", "resume-counts")
CHOSEN = {reader.name: reader for reader in (*READERS, *SIGNED) if reader.name in FAST}


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
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("read", [untrusted.read_json, textfiles.read_json])
def test_a_key_that_is_there_twice_is_found_at_once(read: Callable[[Path], object], tmp_path: Path) -> None:
    names = [f'"k{i}": 1' for i in range(100_000)]
    (tmp_path / "a.json").write_text("{" + ", ".join([*names, names[-1]]) + "}")
    began = time.process_time()
    with pytest.raises(MoeProbeError, match="k99999"):
        read(tmp_path / "a.json")
    assert time.process_time() - began < 10  # comparing each with each takes many minutes


@given(seed=st.integers(0, 2**32), n_rows=st.integers(0, 2100), n_layers=st.integers(1, 3), wide=st.booleans())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_highest_expert_of_each_layer(seed: int, n_rows: int, n_layers: int, wide: bool) -> None:
    dtype = np.dtype("uint16" if wide else "uint8")
    rng, mark = np.random.default_rng(seed), int(np.iinfo(dtype).max)
    ids = rng.integers(0, rng.integers(1, mark + 1), (n_rows, n_layers, 2)).astype(dtype)
    ids[rng.random(ids.shape) < rng.random()] = mark
    expected = np.where(ids == mark, -1, ids.astype(int)).max(axis=(0, 2), initial=-1) + 1
    assert past_highest(ids).tolist() == expected.tolist()
