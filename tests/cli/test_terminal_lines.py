"""Text from outside never makes a line of its own on a terminal, nor a heading or row of Markdown."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from attacks.hostile import EVIL, FORGED, call
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.cli.console import Console
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Bar, say_above
from moe_probe.core.text import one_line, printable, table_lines
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.report.notebook.show import sentences, show
from moe_probe.report.unit_card import UnitCard
from moe_probe.testing import planted_results, planted_routing, planted_trace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an analysed run whose model, documents, topics, words and labels are hostile."""
    root = tmp_path_factory.mktemp("names")
    sizes = {"topics": 3, "documents_per_topic": 4, "tokens": 24, "n_layers": 1, "num_experts": 8}
    routing = planted_routing(**sizes)  # type: ignore[arg-type]
    manifest = planted_trace(root / "plain", planted=(), **sizes).manifest
    evil = manifest.model_copy(update={"model": manifest.model.model_copy(update={"id": EVIL, "revision": EVIL})})
    documents = routing.documents.drop(columns="n_tokens")
    documents = documents.assign(
        document=[f"{EVIL}{i}" for i in range(len(documents))], topic=[f"{EVIL} {t}" for t in documents["topic"]]
    )
    writer = TraceWriter.create(root / "run" / "trace", evil)
    writer.append(
        documents=documents.to_dict("records"),
        experts=routing.experts,
        weights=routing.weights,
        tokens={
            "document": routing.document,
            "position": routing.position,
            "token_id": routing.token_id,
            "token": [f"{EVIL}{i}" for i in routing.token_id],
            "special": routing.position < 0,
        },
    )
    planted_results(writer.seal(), root / "run" / "results", words=(EVIL, f"a{EVIL}", f" b{EVIL}"))
    return root / "run"


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1 and one_line(shown) == shown
    assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs", "Co", "Cn") for c in shown)
    assert not set(shown) & set(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C]))
    assert one_line(printable(text)) == shown


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_table_has_a_line_for_each_row(values: list[str]) -> None:
    lines = table_lines(pd.DataFrame({"a\nb": values}))
    assert len(lines) == len(values) + 1 and all(len(line.splitlines()) <= 1 for line in lines)


def test_every_way_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say(EVIL)
    Console().notes([EVIL])
    Console().result({}, [EVIL, "ours"])
    Console().result({}, EVIL)
    say_above(EVIL)
    bar = Bar(EVIL, total=1)
    bar.update(1, note=EVIL)
    said = capsys.readouterr()
    assert said.out.count("\n") == 3 and said.err.count("\n") == 3
    card = UnitCard(EVIL, ((EVIL, EVIL),))
    frame = pd.DataFrame({EVIL: [EVIL]})
    lines = [bar.line(), str(MoeProbeError(EVIL, EVIL, EVIL)), str(card), repr(show(frame)), repr(sentences([EVIL]))]
    assert not FORGED.search("\n".join([said.out, said.err, *lines, card.markdown()]))
    assert len(str(card).splitlines()) == 2 and len(repr(show(frame)).splitlines()) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("info", "RUN"),
        ("verify", "RUN"),
        ("report", "RUN"),
        ("cite", "RUN"),
        ("cite", "RUN", "--bibtex"),
        ("models", "--add", "RUN", "--records", "OUT", "--no-shipped", "--markdown", "PAGE"),
        ("find", "RUN", EVIL),
        ("ablate", "RUN", "--topic", EVIL),
        ("label", "RUN", "--by", EVIL),
        ("inspect", "RUN", EVIL),
        ("cost", "RUN"),
        ("match", "RUN"),
        ("tree", "RUN", "--word", EVIL),
        ("sae", "eval", "RUN"),
        ("merge", "RUN", "--out", "OUT"),
        ("analyze", f"RUN/{EVIL}".replace("</", "")),
        ("compare", "RUN", EVIL.replace("/", ""), "--out", "OUT", "--no-notebook"),
        (EVIL,),
        ("info", "RUN", f"--{EVIL}"),
    ],
    ids=lambda words: " ".join(words[:1]) if words[0] != EVIL else "no command",
)
def test_no_command_lets_a_name_forge_a_line(run: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    places = {"RUN": str(run), "OUT": str(tmp_path / "out"), "PAGE": str(tmp_path / "page.md")}
    _, out, err = call(*(re.sub("^(RUN|OUT|PAGE)", lambda m: places[m.group()], word) for word in words))
    assert out + err and not FORGED.search(out) and not FORGED.search(err)
    assert not FORGED.search(repr(Trace.open(run)))
    for page in (*run.glob("*.md"), *tmp_path.glob("*.md")):
        assert not FORGED.search(page.read_text(encoding="utf-8")), page
