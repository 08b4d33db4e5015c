"""Progress: nothing unasked, nothing for what is quick, lines without a terminal, a bar with one."""

from __future__ import annotations

import io
import re
import signal
import sys
import time

import pytest

from moe_probe.core import interrupt, progress
from moe_probe.core.progress import Bar, duration, showing, track


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.02)
    monkeypatch.setattr(progress, "_BEAT", 0.02)
    monkeypatch.setattr(progress, "_BETWEEN_LINES", 0.02)


def slowly(n: int):
    for i in range(n):
        time.sleep(0.05)
        yield i


def test_nothing_is_shown_unasked_or_for_what_is_quick(
    impatient: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(track(slowly(3), "work", total=3)) == [0, 1, 2]
    with showing(False):
        list(track(slowly(3), "work", total=3))
    monkeypatch.setattr(progress, "_PATIENCE", 60)
    with showing():
        list(track(range(5), "work"))
    assert capsys.readouterr().err == ""


def test_lines_where_there_is_no_terminal(impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    with showing():
        assert list(track(slowly(4), "label\x1b", total=4, unit="SAEs", name=lambda i: f"n\x1b{i}")) == [0, 1, 2, 3]
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert "\x1b" not in said and "\r" not in said and len(lines) >= 3
    assert any(
        re.fullmatch(r"label\\x1b: 2 of 4 SAEs \(50%\), [\d.]+ a second, \d+ s left; n\\x1b1", line) for line in lines
    ), lines
    assert re.fullmatch(r"label\\x1b: 4 SAEs in \d+ s", lines[-1])


def test_a_bar_on_a_terminal(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with showing():
        for _ in track(slowly(4), "label", total=4, unit="SAEs"):
            progress.say_above("a word")
    said = screen.getvalue()
    assert "label: 2 of 4 SAEs (50%)" in said and "━" in said and "\r" in said and said.count("a word\n") == 4
    assert re.sub(r"\x1b\[\S*?[a-z]|\r", "", said.rpartition("\x1b[2K")[2]) == ""  # and nothing of it stays


def test_bars_inside_each_other(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with showing():
        for _ in track(slowly(2), "outer", total=2):
            list(track(slowly(3), "inner", total=3))
    assert re.search(r"outer: [01] of 2 steps[^\n]*\n[^\n]*inner: \d of 3 steps", screen.getvalue())


def test_lines_on_a_terminal_that_cannot_move_back(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb")
    with showing():
        list(track(slowly(3), "work", total=3))
    assert screen.getvalue().startswith("work: 0 of 3 steps") and "\r" not in screen.getvalue()


def test_a_bar_without_total_and_with_a_beginning(impatient: None) -> None:
    with Bar("import", unit="documents", initial=7) as bar:
        assert re.fullmatch(r"import: 7 documents, 0 s so far", bar.line())
        bar.update(3)
        assert bar.line().startswith("import: 10 documents, ") and "left" not in bar.line()
        bar.update(0, total=20, note="width 3")
        assert "10 of 20 documents (50%)" in bar.line() and bar.line().endswith("; width 3")


def test_an_error_passes_and_ends_the_bar(impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), showing():
        for i in track(slowly(9), "work", total=9):
            if i == 2:
                raise ValueError("broken")
    assert " in " not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (59, "59 s"), (125, "2 min 05 s"), (11400, "3 h 10 min")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_interrupt_is_raised_anew() -> None:
    """Ctrl-C inside a destructor is swallowed by Python; the next step of a bar ends the loop all the same."""

    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.reraise_sigint():
        for i in track(range(5), "work"):
            if i == 1:
                Swallows()
            done.append(i)
    assert done == [0, 1] and signal.getsignal(signal.SIGINT) is before
    assert list(track(range(3), "work")) == [0, 1, 2]  # and it is forgotten afterwards
