"""Whatever a command ends in: one sentence, the place of a log with the traceback, and exit status 1."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.cli.guard import guarded
from moe_probe.testing import planted_routing, write_routing


class PanicException(BaseException):
    """As native code written in Rust raises."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_routing(tmp_path / "run" / "trace", planted_routing(documents_per_topic=4, tokens=8))
    return tmp_path / "run"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*words: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("moe_probe.studies.analyses.analyze", fail)


ERRORS = [
    SafetensorError("header too large"),
    pa.ArrowInvalid("Parquet magic bytes not found"),
    RecursionError("too deep"),
    MemoryError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    KeyError("layer"),
    ValueError("two\nlines\x1b[2J"),
    OSError(5, "Input/output error"),
    PanicException("called `unwrap()`"),
    AssertionError(),
    ModuleNotFoundError("No module named 'other'"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_one_sentence_and_a_log(error: BaseException, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, error)
    done = CliRunner().invoke(app, ["analyze", str(run), "-q"])
    assert done.exit_code == 1 and "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and type(error).__name__ in done.stderr
    match = re.search(r"the traceback is in (\S+\.log)", done.stderr)
    assert match is not None
    log = Path(match[1])
    assert log.parent == run / "logs" and "Traceback" in log.read_text() and type(error).__name__ in log.read_text()


def test_without_a_run_the_log_is_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*words: object, **options: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("moe_probe.recording.importers.import_table", fail)
    done = CliRunner().invoke(app, ["import", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "trace")])
    assert done.exit_code == 1 and len(list(tmp_path.glob("moe-probe-error-*.log"))) == 1
    assert not (tmp_path / "trace").exists()


def test_a_log_that_cannot_be_written_is_no_second_failure(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, ValueError("what"))
    (run / "logs").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none" / "below"))
    (tmp_path / "none").write_text("")
    done = CliRunner().invoke(app, ["analyze", str(run)])
    assert done.exit_code == 1 and "no log of it could be written" in done.stderr


def test_debug_shows_the_traceback(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyError("layer"))
    done = CliRunner().invoke(app, ["analyze", str(run), "--debug"])
    assert isinstance(done.exception, KeyError) and not (run / "logs").exists()


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (typer.Exit(3), 3), (SystemExit(4), 4)])
def test_what_was_meant_stays_as_it_is(
    error: BaseException, status: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    failing(monkeypatch, error)
    before = signal.getsignal(signal.SIGINT)
    try:
        done = CliRunner().invoke(app, ["analyze", str(run)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.exit_code == status and not (run / "logs").exists()


def test_a_reader_that_left_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        guarded(fail)()
    assert ended.value.code == 0


def test_too_little_memory_names_the_option(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_probe.cli.unexpected import sentence_of

    assert "--batch-tokens" in str(sentence_of(MemoryError(), {"recording_batch_tokens": 4096}))
    assert "--batch-tokens" not in str(sentence_of(MemoryError(), {"run": run}))
