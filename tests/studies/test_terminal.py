"""An inspection in a terminal: shades, lines and tables fit, and no text acts on the terminal."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from moe_probe.core.pieces import decode
from moe_probe.studies.inspect import shade_levels
from moe_probe.studies.inspect.terminal import _shaded_text, _token, terminal_text

CODE = re.compile(r"\x1b\[[0-9;]*m")
CHINESE = "有机化学是研究碳化合物的科学。量子力学（描述）微观粒子的运动。"
HOSTILE = ("[red]x[/red]", " \x1b[31m", " :smile:", "\u202eabc", "\r\x07", " \x9b2J", "\u2028", " https://" + "x" * 150)


def inspection(*strings: str) -> Any:
    """An inspection of these tokens, shaded 0 to 4 in turn, with names of all widths and large numbers."""
    n = len(strings)
    experts = pd.DataFrame(
        {
            "layer": 0,
            "expert": [1, 2, 123],
            "share": 1.0,
            "corpus_share": 1.0,
            "gate": 0.5,
            "topic": ["history", "化学", "[b]" + "x" * 200],
            "lift": [1.5, 12.5, 1234.5],
            "replicated": [True, False, True],
            "explained_by": ["", "token", "\x1b[2J"],
        }
    )
    features = pd.DataFrame(
        {
            "feature": [1, 4321],
            "tokens": [3, 12345],
            "max_activation": [0.5, 1234567.25],
            "topic": ["", "化学与物理学" * 4],
            "label": ["", "[b]\x1b[2J " + "有机化学" * 20],
            "label_score": [np.nan, 0.75],
            "excess": [1.0, 2.0],
        }
    )
    return SimpleNamespace(
        name="[b]\x1b[2J",
        notes=("[b]\x1b[2J " + "word " * 50,),
        call=SimpleNamespace(
            strings=strings, text=strings, generated=np.arange(n) >= n - 2, special=np.zeros(n, dtype=bool), windows=1
        ),
        decoded=decode(strings),
        shades=lambda: np.arange(n) % 5,
        shade=SimpleNamespace(name="s:4321", kind="feature", features=(("s", 4321),), experts=()),
        experts=experts,
        features={"s": features},
        fires_on=lambda sae, feature: [(i, 1.0) for i in range(n)],
        alarms=(),
        guesses=(),
        overhead=None,
    )


def test_shades_are_quarters_and_plain_text_marks_the_upper_half() -> None:
    assert shade_levels(np.array([0.0, 0.1, 0.5, 0.51, 0.76, 1.0])).tolist() == [0, 1, 2, 3, 4, 4]
    shown = [_token(" word", shade, "", colour=False).plain for shade in range(5)]
    assert shown == [" word", " word", " word", " ‹word›", " «word»"]
    assert _token(".\n", 4, "", colour=False).plain == "«.↵»\n"


def test_where_the_model_goes_on_is_marked_once() -> None:
    def text(strings: tuple[str, ...], generated: list[bool]) -> str:
        seen = inspection(*strings)
        seen.shades = lambda: np.zeros(len(strings), dtype=int)
        seen.call.generated = np.array(generated)
        return _shaded_text(seen, Console(color_system=None)).plain

    assert text(("a", "b⟨c2⟩", "⟨b2⟩", "c"), [False, True, True, True]) == "a ▸b²c"
    assert text(("a", "b⟨c2⟩", "⟨b2⟩", "c"), [False, False, True, True]) == "ab ▸²c", "the model ended the character"


def test_colour_has_five_strengths_and_leaves_spaces_unshaded() -> None:
    shown = terminal_text(inspection(*(f" w{i}" for i in range(7))), colour=True)
    assert "  w0 \x1b[30;48;5;230mw1\x1b[0m \x1b[30;48;5;222mw2\x1b[0m \x1b[30;48;5;214mw3\x1b[0m" in shown
    assert "\x1b[30;48;5;208mw4\x1b[0m ▸ \x1b[4mw5\x1b[0m \x1b[4;30;48;5;230mw6\x1b[0m" in shown


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [20, 60, 80, 110])
def test_lines_fit_the_terminal_and_numbers_stay_whole(width: int, colour: bool) -> None:
    coloured = terminal_text(inspection(*CHINESE, *HOSTILE, "x" * 150), width=width, colour=colour)
    shown = CODE.sub("", coloured)
    assert all(cell_len(line) <= max(60, width) for line in shown.split("\n"))
    for number in ("×1.5", "×12.5°", "×1234.5", "123", "4321", "12345", "1234567.25", "0.75", "100%"):
        assert number in shown.split(), number
    assert all(line.count("\x1b[") % 2 == 0 for line in coloured.split("\n")), "a colour ends with its line"


@pytest.mark.parametrize("colour", [False, True])
def test_nothing_of_a_text_acts_on_the_terminal(colour: bool) -> None:
    shown = CODE.sub("", terminal_text(inspection(*HOSTILE), colour=colour))
    assert all(c == "\n" or c.isprintable() for c in shown)
    for text in ("[red]x[/red]", "\\x1b[31m", ":smile:", "\\x202eabc", "\\x0d\\x07", "\\x9b2J", "\\x2028", "[b]\\x1b[2J"):
        assert text in shown, text


def test_wide_characters_align_and_break_between_any_two() -> None:
    shown = terminal_text(inspection("x ", *CHINESE, *CHINESE), width=60)
    lines = shown.split("\n")
    rows = [line for line in lines if "×" in line and "100%" in line]
    assert len({cell_len(row.partition("×")[0]) for row in rows}) == 1 and len(rows) == 3
    text = [line for line in lines if "化合" in line.translate(dict.fromkeys(map(ord, "«»‹›")))][:1]
    assert text[0].startswith("  x ") and cell_len(text[0]) > 50, "the line is filled"
    assert not any(line.strip().startswith(("。", "）")) for line in lines)


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR", "TERM"])
def test_the_caller_alone_decides_on_colour(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "dumb")
    assert "\x1b[4;30;48;5;230mb" in terminal_text(inspection("a", "b", "c"), colour=True)
    assert "\x1b" not in terminal_text(inspection("a", "b", "c"))
