"""The table of models: rows from runs, what cannot be tested stays empty, and pages are rebuilt with equal bytes."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.cli import main
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import Evidence
from moe_probe.experts.topics import expert_topics
from moe_probe.experts.usage import layer_usage
from moe_probe.recording.rundir import RunDirectory
from moe_probe.report.plots import topic_information
from moe_probe.report.plots.drawing import svg_bytes
from moe_probe.studies.models_table import (
    SHIPPED,
    Finding,
    ModelRow,
    add_row,
    answer_sentences,
    finding,
    measure_row,
    models_lines,
    models_page,
    read_rows,
    shipped_rows,
)
from moe_probe.studies.models_table.answer import chemistry_sentences
from moe_probe.studies.models_table.cells import NOT_TESTABLE, titles, topics_table
from moe_probe.studies.models_table.page import comparable_sentence, escape
from moe_probe.studies.models_table.row import Information, rounded
from moe_probe.studies.verdicts import NEAR, topic_verdicts
from moe_probe.testing import PlantedExpert, null_trace, planted_trace

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"topics": 4, "documents_per_topic": 20, "tokens": 120, "n_layers": 2, "num_experts": 8}


def analysed(root: Path, **planted: Any) -> RunDirectory:
    """A run with the tables that a row is made of."""
    trace = planted_trace(root / "trace", **SMALL, **planted) if planted else null_trace(root / "trace", **SMALL)
    run = RunDirectory(trace, root)
    effects = expert_topics(trace, permutations=299)
    run.save([layer_usage(trace, permutations=299), effects, topic_verdicts(effects)])
    return run


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return analysed(tmp_path_factory.mktemp("planted"), planted=(PlantedExpert(1, 3, "topic", 2),), lift=3.5)


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return analysed(tmp_path_factory.mktemp("null"))


def as_counts(run: RunDirectory) -> RunDirectory:
    """The same run, of a record that has sums by topic only."""
    manifest = run.manifest.model_copy(update={"kept": (), "settings": {"rows_are_sums": True}})
    out = RunDirectory(run.trace, run.path)
    out.manifest = manifest
    return out


def with_topics(row: ModelRow, **changes: Any) -> ModelRow:
    return row.model_copy(update={"topics": tuple(t.model_copy(update=changes) for t in row.topics)})


def test_a_planted_expert_is_the_strongest_of_its_row(planted: RunDirectory) -> None:
    row = measure_row(planted, name="planted", note="noise with one expert")
    strongest = row.strongest()[0]
    assert (strongest.layer, strongest.experts, strongest.verdict, strongest.replicated) == (1, (3,), "expert", True)
    assert strongest.lift is not None and strongest.lift_low is not None and strongest.lift_low > 1.5
    assert finding(row) in (Finding.FALSE, Finding.NEAR) and len(row.with_expert) == 1
    topics = tuple(t.model_copy(update={"words": "not testable", "grade": "likely"}) for t in row.topics)
    assert finding(row.model_copy(update={"topics": topics})) is Finding.WORDS, "experts of the topic, or of its words"
    assert row.corpus.units == len(planted.documents) == 80 and row.experts == (8,) and row.layers == 2
    layers = planted.results["layers"].table
    assert row.information.mean == pytest.approx(layers["mi_topic_bits"].mean(), rel=1e-3)
    assert row.information.largest == pytest.approx(layers["mi_topic_bits"].max(), rel=1e-3)
    assert row.information.null == pytest.approx(layers["mi_topic_null_bits"].mean(), rel=1e-3)
    possible = np.minimum(np.log2(4), layers["entropy_bits"])
    assert row.information.share_mean == pytest.approx((layers["mi_topic_bits"] / possible).mean(), rel=1e-3)
    assert row.decoding.best == pytest.approx(layers["decode_accuracy"].max(), rel=1e-3)
    assert row.decoding.majority == 0.25 and row.information.p is not None and row.information.p < 0.05


def test_noise_has_no_expert_and_the_answer_goes_by_power(null: RunDirectory) -> None:
    row = measure_row(null)
    assert not row.with_expert and row.tested and row.detectable_lift is not None
    expected = Finding.TRUE if row.detectable_lift <= row.lift_threshold else Finding.OPEN
    assert finding(row) is expected
    strong, weak = with_topics(row, detectable_lift=1.2), with_topics(row, detectable_lift=row.lift_threshold * 1.01)
    assert finding(strong) is Finding.TRUE and finding(weak) is Finding.OPEN
    assert (
        "true as far as tested" in answer_sentences([strong])[1]
        and "of lift 1.20 would have been" in answer_sentences([strong])[1]
    )
    assert "only lifts from" in answer_sentences([weak])[1]


def test_topics_that_could_not_be_tested_are_no_part_of_the_share(planted: RunDirectory) -> None:
    row = measure_row(planted)
    first, *rest = sorted(row.topics, key=lambda t: t.verdict == "expert")
    less = row.model_copy(update={"topics": (first.model_copy(update={"tested": False, "grade": "untested"}), *rest)})
    head, (cells,) = topics_table([less])
    shown = dict(zip(head, cells, strict=True))
    assert shown["tested topics"] == "3 of 4" and shown["with an expert"] == "1 (33%)"
    none_tested = with_topics(row, tested=False)
    assert finding(none_tested) is Finding.UNTESTABLE
    head, (cells,) = topics_table([none_tested])
    assert cells[1] == "0 of 4" and set(cells[2:]) == {NOT_TESTABLE} and len(cells) == len(head)


def test_counts_have_effects_and_no_test(planted: RunDirectory) -> None:
    row = measure_row(as_counts(planted), name="counts")
    assert row.evidence is Evidence.COUNTS
    assert set(row.information.model_dump().values()) == set(row.decoding.model_dump().values()) == {None}
    assert not row.tested and all(t.replicated is None and t.words == "not testable" for t in row.topics)
    assert any((t.layer, t.experts) == (1, (3,)) for t in row.topics)
    assert {(t.lift_low, t.lift_high, t.lift_held_out) for t in row.topics} == {(None, None, None)}
    assert all(t.lift is not None for t in row.topics)
    page = models_page([row])
    assert NOT_TESTABLE in page and "nan" not in page.lower() and "None" not in page
    assert "only summed counts are known" in answer_sentences([row])[1]
    drawn = topic_information([row, measure_row(planted)])
    assert [len(axes.lines) - 1 for axes in drawn.axes] == [1, 1]  # one marker, beside the line at zero
    assert "counts" in drawn.get_supxlabel()
    topic_information([row])  # nothing to draw is no failure


def test_words_are_only_ruled_out_where_they_are_known(planted: RunDirectory) -> None:
    row = measure_row(planted)  # verdicts without the vocabulary test
    assert {t.words for t in row.topics} == {"not judged"}
    assert "Words are ruled out for 0 of 1" in answer_sentences([row])[1]
    documents = row.model_copy(update={"evidence": Evidence.DOCUMENTS})
    assert "Words cannot be ruled out" in answer_sentences([documents])[1]


def test_experts_near_the_threshold_do_not_settle_it(planted: RunDirectory) -> None:
    row = measure_row(planted)
    near = row.model_copy(
        update={"topics": tuple(t.model_copy(update={"grade": NEAR}) if t.verdict == "expert" else t for t in row.topics)}
    )
    assert finding(near) is Finding.NEAR
    groups = row.model_copy(
        update={
            "topics": tuple(t.model_copy(update={"verdict": "group"}) if t.verdict == "expert" else t for t in row.topics)
        }
    )
    assert finding(groups) is Finding.GROUPS


def test_records_have_no_path_and_come_back_as_they_were(planted: RunDirectory, tmp_path: Path) -> None:
    moved = RunDirectory(planted.trace, planted.path)
    model = planted.manifest.model.model_copy(update={"id": "/home/someone/models/mine"})
    moved.manifest = planted.manifest.model_copy(update={"model": model})
    row = measure_row(moved)
    assert row.model == "mine" and measure_row(planted, name="o/n").model == "o/n"
    path = add_row(row, tmp_path / "mine")
    text = path.read_text(encoding="utf-8")
    assert "home" not in text and str(planted.path) not in text
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert read_rows(tmp_path / "mine") == (row,)
    again = add_row(measure_row(moved, note="other words"), tmp_path / "mine")
    assert again == path and read_rows(tmp_path / "mine")[0].corpus.note == "other words"
    (tmp_path / "mine" / "config.json").write_text("{}")  # another program's file is passed over
    assert len(read_rows(tmp_path / "mine", tmp_path / "missing")) == 1


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read"), ('{"model": 3}', "is not a record"), ("[]", "not a record")]
)
def test_damaged_records_are_refused_in_a_sentence(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.row.json").write_text(content)
    with pytest.raises(MoeProbeError, match=message) as error:
        read_rows(tmp_path)
    assert "x.row.json" in str(error.value) and "\n" not in str(error.value)


def test_records_of_the_package_are_read_only() -> None:
    with pytest.raises(UsageError, match="read-only"):
        add_row(shipped_rows()[0], SHIPPED)


def test_the_package_ships_its_records() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["moe_probe"]
    names = [p.relative_to(ROOT / "moe_probe").as_posix() for p in SHIPPED.iterdir()]
    assert names and all(any(fnmatch(name, pattern) for pattern in patterns) for name in names)


def test_shipped_records_are_stored_as_they_are_written(tmp_path: Path) -> None:
    for row in shipped_rows():
        path = add_row(row, tmp_path)
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes()
        for value in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", path.read_text(encoding="utf-8")):
            assert "versions" in row.model_dump() and (rounded(float(value)) == float(value) or value in str(row.versions))


def test_page_and_figure_are_rebuilt_with_equal_bytes() -> None:
    """The page of the repository is what the records give; figures are compared with each other: fonts differ by machine."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == models_page(shipped_rows()) == models_page(shipped_rows()), "run python scripts/models_table.py"
    first, second = (svg_bytes(topic_information(shipped_rows())) for _ in range(2))
    assert first == second and b"<svg" in first and b"dc:date" not in first
    assert (ROOT / "docs" / "models.svg").read_bytes().startswith(b"<?xml")


def test_rows_of_one_corpus_are_named(planted: RunDirectory, null: RunDirectory) -> None:
    a, b = measure_row(planted, name="a"), measure_row(null, name="b")
    assert a.corpus.documents_hash == b.corpus.documents_hash
    assert comparable_sentence([a, b]) == "Rows that share documents and labels: a and b."
    other = b.model_copy(update={"corpus": b.corpus.model_copy(update={"documents_hash": "0" * 64})})
    assert comparable_sentence([a, other]).startswith("No two rows")
    assert titles([a, other.model_copy(update={"model": "a"})])[0] == f"a (topic, {a.corpus.documents_hash[:8]})"


def test_chemistry_is_asked_of_every_row(planted: RunDirectory) -> None:
    row = measure_row(planted, name="m")
    expert = row.with_expert[0].model_copy(update={"topic": "college_Chemistry"})
    assert chemistry_sentences([row]) == ["m: its corpus has no topic of this name."]
    yes, no = (
        row.model_copy(update={"topics": (expert,)}),
        with_topics(row.model_copy(update={"topics": (expert,)}), verdict="none"),
    )
    assert ": yes (" in chemistry_sentences([yes])[0] and "expert 3 of layer 1" in chemistry_sentences([yes])[0]
    assert ": no; " in chemistry_sentences([no])[0]
    assert "not testable; the largest effect is" in chemistry_sentences([with_topics(no, tested=False)])[0]


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_rounding_is_stable(value: float) -> None:
    once = rounded(value)
    if once is None:
        assert not abs(value) < 1.797e308  # missing, infinite, or infinite once it is rounded up
    else:
        assert rounded(once) == once and abs(once - value) <= 5.1e-4 * abs(value)


@settings(deadline=None, max_examples=50)  # pages take long beside other work
@given(st.text(min_size=1, max_size=30))
def test_labels_stay_cells_of_their_table(text: str) -> None:
    row = shipped_rows()[0]
    topic = row.topics[0].model_copy(update={"topic": text, "verdict": "expert", "tested": True, "lift": 99.0})
    page = models_page([row.model_copy(update={"model": text, "topics": (topic,)})])
    widths = {}
    for block in page.split("\n\n"):
        if block.startswith("| "):
            widths[block] = {len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in block.split("\n")}
    assert len(widths) == 6 and all(len(different) == 1 for different in widths.values())
    assert "<script" not in escape(f"<script>{text}")


def test_information_of_a_row_may_be_empty() -> None:
    assert Information().mean is None
    with pytest.raises(ValueError, match="finite"):
        Information(mean=float("inf"))


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["moe-probe", "models", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err


def test_the_command(
    planted: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = said(monkeypatch, capsys)
    assert status == 0 and out.splitlines() == models_lines(shipped_rows())
    status, out, _ = said(monkeypatch, capsys, "--add", planted.path, "--name", "mine", "--corpus-note", "a note")
    assert status == 0 and "Added: models/mine-topic-" in out and "a note" in out
    status, out, _ = said(monkeypatch, capsys, "--json")
    data = json.loads(out)
    assert "mine" in [m["model"] for m in data["models"]] and len(data["models"]) == len(shipped_rows()) + 1
    written = [tmp_path / name for name in ("page/a.md", "page/a.svg", "page/a.png")]
    for figure in written[1:]:
        status, _, _ = said(monkeypatch, capsys, "--no-shipped", "--markdown", written[0], "--figure", figure)
        assert status == 0 and f"({figure.name})" in written[0].read_text(encoding="utf-8") and figure.stat().st_size > 1000
    assert "gpt-oss" not in written[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--name", "x"), 2, "--add RUN"),
        (("--figure", "x.pdf"), 2, "--figure x.svg"),
        (("--records", "nowhere"), 2, "no folder nowhere"),
        (("--no-shipped",), 1, "no records in models"),
        (("--add", "nowhere"), 1, "nowhere"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: tuple[str, ...],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = said(monkeypatch, capsys, *words)
    assert code == status and message in err and len(err.strip().splitlines()) == 1


def test_a_run_that_was_not_analysed_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    null_trace(tmp_path / "trace", topics=3, documents_per_topic=4, tokens=20, n_layers=1, num_experts=4)
    status, _, err = said(monkeypatch, capsys, "--add", tmp_path, "--records", tmp_path / "r")
    assert status == 1 and "moe-probe analyze" in err and not (tmp_path / "r").exists()
