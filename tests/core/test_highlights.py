"""Characters where they are marked, cut and counted: Markdown, tips of maps, sentences about words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.core.pieces import decode, marked, standing
from moe_probe.core.text import clipped, cut_to
from moe_probe.features.labels.context import _words
from moe_probe.features.search import SearchResult, occurrences
from moe_probe.report.build import environment
from moe_probe.report.content import Passage
from moe_probe.report.sections.features import _by_sae
from moe_probe.report.sections.maps import _tokens
from moe_probe.report.sections.units import _beyond_words
from moe_probe.report.unit_card import UnitCard


def test_a_special_token_within_a_character_hides_none_of_its_tokens() -> None:
    text = decode(["x⟨c2⟩", "", "⟨b2⟩", "y"])
    assert text.text == "x²y" and text.starts.tolist() == [0, 1, 1, 2] and text.ends.tolist() == [2, 2, 2, 3]
    assert text.rows(1, 2) == slice(0, 3) and text.shares() == ["x²", "", "", "y"]
    assert text.segments() == [("x", slice(0, 1)), ("²", slice(0, 3)), ("y", slice(3, 4))]

    class Fake:
        manifest, spaced = SimpleNamespace(has_text=False), staticmethod(lambda tokens: tokens)

        def tokens(self, columns: list[str]) -> pd.DataFrame:
            return pd.DataFrame(
                {"document": [0] * 4, "token": ["x⟨c2⟩", "<s>", "⟨b2⟩", " y"], "special": [False, True, False, False]}
            )

    fake: Any = Fake()
    assert occurrences(fake, "x²").tolist() == [0, 2]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_cut_of_bytes_has_rising_offsets(size: int) -> None:
    text = "Büchner: σ = ħ·ψ²/2, 化学 👩\u200d🔬 السلام cafe\u0301"
    data = text.encode()
    made = decode([marked(data[i : i + size]) for i in range(0, len(data), size)])
    assert made.text == text and (np.diff(made.starts) >= 0).all() and (np.diff(made.ends) >= 0).all()
    assert "".join(part for part, _ in made.segments()) == text


def test_flags_and_skin_tones_are_not_cut() -> None:
    assert cut_to("🇩🇪🇫🇷🇮🇹", 4) == "🇩🇪…" and cut_to("👍🏽👍🏽👍🏽", 4) == "👍🏽…"
    assert [clipped("e\u0301e\u0301e\u0301", n) for n in (3, 4, 5, 6)] == [
        "e\u0301…",
        "e\u0301…",
        "e\u0301e\u0301…",
        "e\u0301" * 3,
    ]
    assert clipped("the piece “⟨d0⟩”, “⟨b2⟩”", 21) == "the piece “⟨d0⟩”…" and cut_to("ab⟨b2⟩c", 5) == "ab…"
    assert clipped("x" * 80, 60) == "x" * 59 + "…" and clipped("👩\u200d🔬" * 9, 8) == "👩\u200d🔬" * 2 + "…"


def test_markdown_marks_what_is_shaded_within_words_too() -> None:
    passage = Passage("strongest", ((" ки", 0), ("с", 3), ("ло", 0), (" тот", 2), ("⟨b2⟩", 4), ("<i>", 2)))
    line = " ки<b>с</b>ло<b> тот</b><b>⟨b2⟩</b><b>&lt;i&gt;</b>"
    assert line in UnitCard("t", (), (passage,)).markdown()
    made = environment(autoescape=False)
    assert made.loader is not None
    macro = made.loader.get_source(made, "report.md.j2")[0].split("{% endmacro %}")[0]
    shown = made.from_string(macro + "{% endmacro %}{{ shaded(passage) }}").render(passage=passage)
    assert line.replace("</b><b>", "") in shown, "neighbours that are shaded are joined"


def test_tips_of_a_map_are_the_text_as_it_is() -> None:
    tokens = np.array([" ки", "с", "лота", " и", " соль", "⟨e5⟩", "⟨8c⟩⟨96⟩", "学"], dtype=object)
    chunks = [(0, SimpleNamespace(columns={"document": np.full(8, i), "token": tokens}, first=8 * i)) for i in range(2)]
    trace: Any = SimpleNamespace(iter_tokens=lambda columns: chunks, spaced=lambda strings: strings)
    part = pd.DataFrame({"id": [1, 3, 5, 9], "label": "t"})
    tips = _tokens(trace, part)
    assert "ки»с«лота" in tips[0] and " »и« соль" in tips[1] and "соль»化«学" in tips[2]
    assert tips[3] == tips[0]


def test_accents_join_the_word_before_them_and_stand_on_a_circle_alone() -> None:
    tokens = np.array([" cafe", "\u0301.", " is", " हिन", "\u094d", "द", "\u0940।"], dtype=object)
    number, words = _words(tokens, np.arange(7) == 0)
    assert words == ["cafe\u0301", "is", "हिन\u094dद\u0940"] and number.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert decode([" cafe", "\u0301."]).name(1) == "◌\u0301." and standing("é") == "é" and standing("") == ""


def test_missing_numbers_are_a_dash_in_a_terminal() -> None:
    lines = SearchResult("q", 1, pd.DataFrame({"label": ["化学"], "label_score": [np.nan]}), pd.DataFrame()).lines()
    shown = "\n".join(lines)
    assert "NaN" not in shown and "–" in shown


def test_features_that_were_not_compared_with_words_do_not_count_as_better() -> None:
    row = {
        "beyond_token_document": 0.2,
        "beyond_token_document_low": 0.1,
        "beyond_tokens_document": np.nan,
        "beyond_tokens_document_low": np.nan,
        "log2_beyond_words": 1.0,
        "log2_beyond_words_low": 0.5,
    }
    untested = dict.fromkeys(row, np.nan)
    unsure = row | {"beyond_tokens_document": 0.2}  # a set there is, but no interval
    said = _beyond_words(pd.DataFrame([row, untested, unsure]))
    assert said.startswith(" 1 of 2 features do better than words") and "1 more could not be compared" in said
    assert _beyond_words(pd.DataFrame([untested])) == " None of these features could be compared with words."


def test_shares_are_of_features_that_were_tested() -> None:
    table = pd.DataFrame(
        {
            "sae": "layer_00/width_00004",
            "density": 0.1,
            "label_score": 0.8,
            "good": True,
            "topic": ["a", "", "", ""],
            "topic_q": [0.01, 0.5, np.nan, np.nan],
            "auroc_topic": [0.95, np.nan, np.nan, np.nan],
        }
    )
    params = {"by": "topic", "good_score": 0.7, "good_hard_score": 0.6}
    assert _by_sae(table, params).rows[0][-2:] == ("50%", "100.0%")
    none = table.assign(topic="", topic_q=np.nan, auroc_topic=np.nan)
    assert _by_sae(none, params).rows[0][-2:] == ("–", "–"), "not tested is not none"
