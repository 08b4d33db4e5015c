"""One writer at a time: whoever comes second is told who writes, and nothing is left of the lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core import lock
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.holder import HOLDER, read_holder
from moe_probe.core.lock import LOCK, LockedError, locked, run_of_results, writing
from moe_probe.testing import planted_trace


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.01)


@contextmanager
def held(root: Path, **holder: object) -> Iterator[None]:
    """The lock of a folder in other hands: one of another open file is as good as one of another process."""
    root.mkdir(parents=True, exist_ok=True)
    said = {"host": socket.gethostname(), "pid": os.getpid(), "command": "moe-probe run", "started": "noon"} | holder
    (root / HOLDER).write_text(json.dumps(said))
    with (root / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    (root / LOCK).unlink()
    (root / HOLDER).unlink()


def state(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_second_is_told_who_writes(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(LockedError) as error, writing(tmp_path):
        pass
    assert error.value.exit_code == 1
    assert str(error.value) == (
        f"{tmp_path} is being written by another process: process {os.getpid()} on {socket.gethostname()} has been writing "
        f"since noon (moe-probe run). Try: wait until it has ended, or end it with kill {os.getpid()}."
    )


def test_a_holder_on_another_machine_is_named_with_it(tmp_path: Path) -> None:
    with (
        held(tmp_path, host="node7", pid=5),
        pytest.raises(LockedError, match=r"process 5 on node7 .* or end it on node7 with kill 5\."),
        writing(tmp_path),
    ):
        pass


@pytest.mark.parametrize("pid", [2**22 + 1, 0, -1, "7", True, None, 1e9, 2**70])
def test_a_holder_that_cannot_be_right_is_not_named(tmp_path: Path, pid: object) -> None:
    with held(tmp_path, pid=pid), pytest.raises(LockedError) as error, writing(tmp_path):
        pass
    assert "process holds the lock" not in str(error.value)
    assert "kill" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": 1}', "[" * 5000, "\ud800".encode("utf-8", "surrogatepass")])
def test_a_damaged_note_of_the_holder_is_no_note(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / HOLDER).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_holder(tmp_path) is None


def test_neither_a_pipe_nor_a_link_is_read_as_note(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / HOLDER)
    assert read_holder(tmp_path) is None
    (tmp_path / HOLDER).unlink()
    (tmp_path / "elsewhere").write_text('{"host": "a", "pid": 1, "command": "b", "started": "c"}')
    (tmp_path / HOLDER).symlink_to("elsewhere")
    assert read_holder(tmp_path) is None
    with writing(tmp_path):  # and nothing is written through it
        assert read_holder(tmp_path) is not None
    assert '"pid": 1' in (tmp_path / "elsewhere").read_text()


def test_a_note_with_line_breaks_stays_one_line(tmp_path: Path) -> None:
    forged = "a\nmoe-probe: all is well\n" + "x" * 9999
    with held(tmp_path, command=forged), pytest.raises(LockedError) as error, writing(tmp_path):
        pass
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_a_killed_holder_leaves_nothing_that_holds(tmp_path: Path) -> None:
    code = (
        "import sys, time; from moe_probe.core.lock import writing\n"
        "with writing(sys.argv[1]): print('taken', flush=True); time.sleep(60)"
    )
    root = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LockedError, match=f"process {process.pid} on"), writing(root):
            pass
        process.send_signal(signal.SIGKILL)
    assert {p.name for p in root.iterdir()} == {LOCK, HOLDER}
    with writing(root):
        holder = read_holder(root)
        assert holder is not None and holder.pid == os.getpid()
    assert list(root.iterdir()) == []


def test_nothing_is_left_of_a_lock_under_which_nothing_was_written(tmp_path: Path) -> None:
    with writing(tmp_path / "new" / "trace"):
        assert read_holder(tmp_path / "new" / "trace") is not None
    assert list(tmp_path.iterdir()) == []
    with writing(tmp_path / "new" / "trace"):
        (tmp_path / "new" / "note").write_text("mine")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["note"]


def test_one_process_takes_it_as_often_as_it_likes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    done = []

    def other_thread() -> None:
        with writing(tmp_path / "link"):
            done.append((tmp_path / "run" / LOCK).exists())

    with writing(tmp_path / "run"):
        with writing(tmp_path / "run" / ".." / "run"):
            thread = threading.Thread(target=other_thread)
            thread.start()
            thread.join()
        assert (tmp_path / "run" / LOCK).exists()
    assert done == [True]
    assert not (tmp_path / "run").exists()


def test_a_forked_child_leaves_the_lock_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = os.getpid(), tmp_path.resolve()
    with writing(tmp_path):
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: key[0] + 1)
            lock._give_back(key)  # what a child does that leaves the block
        assert sorted(p.name for p in tmp_path.iterdir()) == [HOLDER, LOCK]
    assert list(tmp_path.iterdir()) == []


def test_results_are_of_the_run_around_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results" / "asked").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "results")
    for directory in (".", "asked", tmp_path / "results", tmp_path / "results" / "asked"):
        assert run_of_results(directory) == tmp_path
    assert run_of_results("of_two") == Path("of_two")


def test_a_lock_file_that_was_replaced_is_another_one(tmp_path: Path) -> None:
    """Removed by somebody while it was held, and taken by another: what the other has stays."""
    with writing(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("of another")
        (tmp_path / HOLDER).write_text("of another")
    assert (tmp_path / LOCK).read_text() == (tmp_path / HOLDER).read_text() == "of another"


def test_a_path_that_cannot_be_locked_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MoeProbeError, match=r"is a file; a trace is a folder\. Try: another --out"),
        writing(tmp_path / "file"),
    ):
        pass
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / LOCK).symlink_to(tmp_path / "file")
    with pytest.raises(MoeProbeError, match=r"cannot be written: .* nothing was changed"), writing(tmp_path / "made"):
        pass

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(lock, "_native_lock", refuse)
    with pytest.raises(MoeProbeError, match="Read-only file system; nothing was changed"), writing(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_gets_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MoeProbeError, match="Permission denied; nothing was changed"), writing(tmp_path):
        pass
    tmp_path.chmod(0o700)


def test_file_systems_without_locks_get_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks:
        def __init__(self, path: Path) -> None: ...

        def acquire(self, **settings: float) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_native_lock", NoLocks)
    with writing(tmp_path):
        with writing(tmp_path):
            assert (tmp_path / LOCK).exists()
        second = lock._lease(tmp_path / LOCK)
        with pytest.raises(TimeoutError):
            second.acquire(timeout=0.01)
        with monkeypatch.context() as other, pytest.raises(LockedError, match=f"process {os.getpid()} on"):
            other.setattr(lock, "_held", {})  # as another process would see it
            with writing(tmp_path):
                pass
    assert list(tmp_path.iterdir()) == []


def test_links_inside_a_run_are_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "results").symlink_to(tmp_path / "elsewhere")

    @locked(run_of_results)
    def write(directory: Path) -> None:
        (directory / "table").write_text("")

    with pytest.raises(MoeProbeError, match=r"results is a link to .*replace the link by the folder"):
        write(tmp_path / "run" / "results")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "run"
    planted_trace(root / "trace", planted=(), documents_per_topic=2, tokens=8, n_layers=1, num_experts=4)
    (root / "run.yaml").write_text("model: {name: none}\ncorpus: {source: none}\n")
    return root


@pytest.mark.parametrize(
    "words",
    [
        "run none --corpus none --out RUN --resume",
        "run none --corpus none --out RUN --force",
        "demo --out RUN --force",
        "collect none --corpus none --out TRACE --force",
        "collect none --corpus none --out TRACE --resume",
        "import none.npz --format arrays --topic law --out TRACE --force",
        "import none.npz --format usage --top-k 2 --topic law --out TRACE --resume",
        "merge OTHER --out TRACE --force",
        "analyze RUN",
        "analyze TRACE --out RUN",
        "report RUN",
        "sae train RUN",
        "sae load RUN none --layer 0",
        "sae eval RUN",
        "label RUN",
        "match RUN",
        "tree RUN",
        "ablate RUN",
        "cost RUN",
        "compare RUN RUN --out RUN --force",
    ],
)
def test_every_command_that_writes_is_refused(a_run: Path, tmp_path: Path, words: str) -> None:
    import numpy as np

    np.savez(tmp_path / "none.npz", experts=np.zeros((4, 1, 2), np.uint8), counts=np.ones((1, 1, 4)), document=[0] * 4)
    shutil.copytree(a_run / "trace", tmp_path / "other")
    paths = {"RUN": a_run, "TRACE": a_run / "trace", "OTHER": tmp_path / "other", "none.npz": tmp_path / "none.npz"}
    with held(a_run), held(a_run / "trace"):
        before = state(a_run)
        result = CliRunner().invoke(app, [str(paths.get(word, word)) for word in words.split()])
        assert "is being written by another process" in result.stderr, result.output
        assert f"process {os.getpid()} on" in result.stderr
        assert result.exit_code == 1
        assert state(a_run) == before


@pytest.mark.parametrize("words", ["info RUN", "verify RUN", "tree RUN --word none", "cite"])
def test_readers_do_not_ask(a_run: Path, words: str) -> None:
    with held(a_run), held(a_run / "trace"):
        result = CliRunner().invoke(app, [str(a_run) if word == "RUN" else word for word in words.split()])
    assert "is being written" not in result.output


def test_two_writers_at_once() -> None:
    """The attack's short form: two imports, in processes of their own."""
    script = Path(__file__).resolve().parents[2] / "scripts" / "attack.py"
    ended = subprocess.run([sys.executable, script, "--writers", "--short"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| import --force and import --force | 1 |" in ended.stdout
