"""Files are whole or absent, follow the umask, and a disk that refuses is one sentence, whatever library was writing."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_errors, is_left_over, write_json, write_text, write_whole

Write = Callable[[Path], object]
#: How the package writes each kind of file; the argument is the number of values.
WRITERS: dict[str, Callable[[int], Write]] = {
    "text": lambda n: lambda path: path.write_text("x" * n),
    "bytes": lambda n: lambda path: path.write_bytes(b"x" * n),
    "parquet": lambda n: lambda path: pd.DataFrame({"x": np.random.default_rng(0).random(n)}).to_parquet(path),
    "numpy": lambda n: lambda path: safetensors.numpy.save_file({"x": np.zeros(n)}, path),
    "torch": lambda n: lambda path: safetensors.torch.save_file({"x": torch.zeros(n)}, path),
}


@contextmanager
def masked(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def limited(n_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_every_kind_of_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    with masked(umask):
        for name, writer in WRITERS.items():
            write_whole(tmp_path / name, writer(10))
            write_whole(tmp_path / name, writer(20))  # also where it replaces a file
        write_json(tmp_path / "json", {"a": 1})
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys([*WRITERS, "json"], 0o666 & ~umask)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_disk_that_refuses_is_one_sentence_and_keeps_the_file_before(tmp_path: Path, kind: str) -> None:
    write_whole(tmp_path / "file", WRITERS[kind](5))
    before = (tmp_path / "file").read_bytes()
    with limited(4096), pytest.raises(MoeProbeError) as error, disk_errors(tmp_path / "file", keeps="the rest is kept"):
        write_whole(tmp_path / "file", WRITERS[kind](100_000))
    assert "cannot be written" in str(error.value) and "the rest is kept" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", "no space is left for"),
        ("Error while serializing: I/O error: Permission denied (os error 13) at path 'x'", "Permission denied"),
    ],
)
def test_what_safetensors_says_of_the_disk_becomes_the_disks_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    def refuse(path: Path) -> None:
        raise safetensors.SafetensorError(text)

    with pytest.raises(MoeProbeError, match=sentence), disk_errors(tmp_path):
        write_whole(tmp_path / "file", refuse)
    assert not list(tmp_path.iterdir())


def test_other_errors_of_libraries_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(safetensors.SafetensorError, match="overlaps"):
        write_whole(tmp_path / "file", lambda path: _raise(safetensors.SafetensorError("a tensor overlaps")))


def _raise(error: Exception) -> Any:
    raise error


def test_a_link_at_the_partial_name_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "file.partial").symlink_to(tmp_path / "notes")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "notes").read_text() == "mine" and (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()


def test_names_of_files_that_were_being_written() -> None:
    assert is_left_over("usage.parquet.partial") and is_left_over(".tmpaB3x9Z")
    assert not any(is_left_over(name) for name in ("usage.parquet", ".tmp", ".tmpfiles", "partial", "x.tmpaB3x9Z"))
