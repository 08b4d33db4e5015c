"""What a notebook shows: a run in one object, cards, escaped tables; a trace as AnnData."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moe_probe
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.results import Result, Results
from moe_probe.recording.trace import Trace
from moe_probe.report.sections.answers import answers
from moe_probe.runs.run import Run
from moe_probe.studies.verdicts import complete_verdicts
from moe_probe.testing import PlantedExpert, planted_trace

EVIL = '<script>alert(1)</script>" onload="x\x1b[31m'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Make an analysed run whose model has a hostile name, with features as ``moe-probe label`` writes them."""
    root = tmp_path_factory.mktemp("run")
    trace = planted_trace(
        root / "trace",
        planted=(PlantedExpert(1, 5, "topic", 2),),
        topics=3,
        documents_per_topic=16,
        tokens=40,
        n_layers=2,
        num_experts=8,
        lift=2.5,
    )
    manifest = json.loads((trace.root / "trace.json").read_text())
    manifest["model"]["id"] = EVIL
    (trace.root / "trace.json").write_text(json.dumps(manifest))
    trace = Trace.open(root)
    topics = moe_probe.expert_topics(trace, permutations=99)
    for result in (
        topics,
        moe_probe.layer_usage(trace, permutations=99),
        moe_probe.expert_usage(trace),
        complete_verdicts(moe_probe.topic_verdicts(topics)),
    ):
        result.save(root / "results")
    features = pd.DataFrame(
        {
            "sae": "layer_01/width_00064",
            "layer": 1,
            "width": 64,
            "feature": [0, 1],
            "label": [EVIL, ""],
            "label_score": 0.9,
            "label_hard_score": 0.8,
            "label_precision": 0.5,
            "label_recall": 0.5,
            "topic": [EVIL, ""],
            "topic_log2_lift": 1.0,
            "topic_q": 0.01,
            "auroc_topic": 0.9,
            "density": 0.1,
            "top_tokens": EVIL,
            "nearest": 1,
            "nearest_cosine": 0.5,
            "max_activation": 2.0,
            "good": True,
            "label_rule": "words",
            "topic_ci_low": 0.5,
            "topic_ci_high": 1.5,
        }
    )
    params = {"by": "topic", "finer": None, "good_score": 0.8, "good_hard_score": 0.7}
    Result("features", features, params=params).save(root / "results")
    cards = pd.DataFrame(
        {
            "sae": "layer_01/width_00064",
            "feature": 0,
            "chosen": ["best", "best", "topic"],
            "part": "strongest",
            "tokens": [["a", EVIL]] * 3,
            "activations": [[0.0, 2.0]] * 3,
        }
    )
    Result("feature_cards", cards).save(root / "results")
    opened = moe_probe.open(root)
    assert isinstance(opened, Run)
    return opened


class Page(HTMLParser):
    """Tags and attributes, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data


def safe(text: str) -> Page:
    page = Page(text)
    assert "script" not in page.tags and page.attributes <= {"style", "dir"} and "\x1b" not in text
    assert len(page.tags) > 3
    return page


def test_run_is_a_trace_with_more(run: Run) -> None:
    assert isinstance(run, Trace) and type(run.trace) is Trace and type(moe_probe.open(run.root)) is Trace
    result = moe_probe.layer_usage(run, permutations=99)
    pd.testing.assert_frame_equal(result.table, moe_probe.layer_usage(run.trace, permutations=99).table)
    assert set(run.verdicts.table["topic"]) == {"topic-0", "topic-1", "topic-2"}
    assert run.verdicts["topic-1"]["sentence"] in run.verdicts._repr_html_()
    lines = repr(run.verdicts).splitlines()  # headings, a row for each topic, where the reasons are
    assert lines[0].split() == ["topic", "verdict", "grade", "layer", "experts", "lift", "interval"]
    assert [line.split()[0] for line in lines[1:4]] == list(run.verdicts.table["topic"]) and len(lines) == 5
    assert all(row.verdict in line for row, line in zip(run.verdicts.table.itertuples(), lines[1:4], strict=True))
    with pytest.raises(UsageError, match=r"there is no topic 'topc-1'.*topic-1"):
        run.verdicts["topc-1"]
    assert run.plot.topics().axes and "topics" in repr(run.plot)
    text = repr(run)
    assert "48 documents" in text and f"{len(run.results)} results" in text and "0 SAEs" in text and "no report" in text
    assert run.report() == run.path / "report.html" and "report.html" in repr(moe_probe.open(run.path))


def test_short_answers_by_question(run: Run) -> None:
    said = run.answers
    assert said["Do topics have experts of their own?"].startswith(("None of ", "1 of ", "2 of ", "3 of "))
    assert list(said.values()) == [answer.answer for answer in answers(run.results)]


def test_results_are_read_when_asked_for(run: Run) -> None:
    assert "layers" in run.results and "layers" in dir(run.results) and list(run.results) == sorted(run.results)
    assert run.results.layers is run.results["layers"] and run.results.layers.name == "layers"
    assert run.results.get("layerz") is None and not hasattr(run.results, "layerz")
    with pytest.raises(MoeProbeError, match="did you mean 'layers'"):
        run.results["layerz"]
    with pytest.raises(AttributeError, match="did you mean 'layers'"):
        _ = run.results.layerz
    with pytest.raises(MoeProbeError, match="moe-probe tree"):
        run.results["tree"]
    before = run.results["layers"]
    Result("layers", before.table, caption="changed").save(run.path / "results")
    assert run.results.layers.caption == "changed"
    before.save(run.path / "results")


def test_no_results_yet(tmp_path: Path) -> None:
    planted_trace(
        tmp_path / "trace", planted=(), topics=2, documents_per_topic=4, tokens=10, n_layers=1, num_experts=4, lift=1
    )
    opened = moe_probe.open(tmp_path)
    assert isinstance(opened, Run)
    assert "0 results" in repr(opened)
    for ask in (
        lambda: opened.verdicts,
        lambda: opened.card(0, 1),
        opened.report,
        lambda: opened.card("layer_00/width_1", 1),
    ):
        with pytest.raises(MoeProbeError, match=r"moe-probe (analyze|label)"):
            ask()
    with pytest.raises(UsageError, match="moe-probe sae train"):
        opened.saes()["layer_00/width_00064"]
    with pytest.raises(MoeProbeError, match="there is no trace"):
        moe_probe.open(tmp_path / "none")


def test_notebook_shows_hostile_text(run: Run) -> None:
    assert "3 topic" not in safe(run.trace._repr_html_()).words and "<script>" in safe(run._repr_html_()).words
    table = pd.DataFrame({EVIL: [EVIL, "x" * 500], "n": [0.123456789, np.nan], "many": [[EVIL] * 9, []]})
    page = safe(
        Result("r", table, params={EVIL: EVIL}, seed=3, caption=EVIL, warnings=(EVIL,), citations=(EVIL,))._repr_html_()
    )
    assert "details" in page.tags and "0.1235" in page.words and page.words.count("alert(1)") >= 8
    safe(run.results._repr_html_())
    long = Result("r", pd.DataFrame({"a": range(500)}))._repr_html_()
    assert safe(long).tags.count("tr") == 11 and "10 of 500 rows" in long


def test_cards(run: Run) -> None:
    card = run.card(1, 5)
    assert card == moe_probe.expert_card(run.path, 1, 5) and card.title.startswith(
        "Layer 1, expert 5: most used for topic-2"
    )
    assert "load" in dict(card.facts) and "topic-2" in str(card) and "**topics**" in card.markdown()
    safe(card._repr_html_())
    feature = moe_probe.feature_card(run, "layer_01/width_00064", 0)
    assert "<script>" in safe(feature._repr_html_()).words and len(feature.passages) == 2
    assert "\x1b" not in str(feature) + feature.markdown() and "<script>" not in feature.markdown()
    assert moe_probe.feature_card(run, "layer_01/width_00064", 1).passages == ()
    with pytest.raises(AttributeError):
        card.title = "other"  # type: ignore[misc]  # what must not be possible


@pytest.mark.parametrize(
    ("where", "number", "message"),
    [
        (7, 0, "there is no MoE layer 7"),
        (1, 8, "layer 1 has no expert 8: it has 8"),
        (1, -1, "no expert -1"),
        ("layer_1/width_00064", 0, "did you mean 'layer_01/width_00064'"),
        ("layer_01/width_00064", 2, "no feature 2: it has 2"),
    ],
)
def test_no_such_unit(run: Run, where: int | str, number: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run.card(where, number)


def test_faces_need_no_torch(run: Run) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\nimport moe_probe\n"
        "run = moe_probe.open(sys.argv[1]); run.card(1, 5); run._repr_html_(); run.verdicts; print(len(run.saes()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "0"


def test_anndata_is_an_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(MoeProbeError, match=r"pip install 'moe-probe\[anndata\]'"):
        run.to_anndata()


def test_anndata(run: Run, tmp_path: Path) -> None:
    import anndata

    made = run.to_anndata()
    usage = run.usage()
    assert made.shape == (48, 16) and list(made.var["layer"]) == [0] * 8 + [1] * 8 and made.var_names[13] == "L01E005"
    np.testing.assert_array_equal(made.X.toarray(), usage.selections.reshape(48, 16))
    assert usage.gate_mass is not None
    np.testing.assert_allclose(made.layers["gate_mass"].toarray(), usage.gate_mass.reshape(48, 16), rtol=1e-5)
    assert list(made.obs["topic"]) == list(run.documents["topic"]) and list(made.obs_names) == list(
        run.documents["document"]
    )
    tokens = run.to_anndata(of="tokens", layer=1)
    kept = ~run.tokens()["special"].to_numpy()
    np.testing.assert_array_equal(tokens.X.toarray(), run.layer(1).toarray()[kept])
    assert {"document", "topic", "position", "token"} <= set(tokens.obs) and tokens.uns["moe_probe"]["layers"] == [1]
    for name, item in (("a", made), ("b", tokens)):
        item.write_h5ad(tmp_path / f"{name}.h5ad")
        read = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
        assert read.shape == item.shape and list(read.obs["topic"]) == list(item.obs["topic"])
    with pytest.raises(MoeProbeError, match="no MoE layer 4"):
        run.to_anndata(layer=4)
    with pytest.raises(UsageError, match="documents or tokens"):
        run.to_anndata(of="words")


def test_mapping_of_results_is_plain(tmp_path: Path) -> None:
    assert len(Results(tmp_path / "none")) == 0 and "none" in repr(Results(tmp_path / "none"))
    Result("one", pd.DataFrame({"a": [1]})).save(tmp_path)
    (tmp_path / "two.parquet").write_bytes(b"half")
    assert dict(Results(tmp_path)).keys() == {"one"}
