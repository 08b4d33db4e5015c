"""Comparisons of runs whose difference is known: experts renumbered, an expert added, nothing at all."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from support.compared_runs import ADDED, add_saes, permuted, routing, side, write_run

from moe_probe.cli import main
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.results import Result
from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo
from moe_probe.core.stats import Resamples
from moe_probe.experts.collapse import collapsed_layers
from moe_probe.studies.compare import (
    ComparedRun,
    Comparison,
    align_experts,
    compare_layers,
    compare_opened_runs,
    compare_runs,
    compare_topics,
    compare_verdicts,
    pair_runs,
    sae_differences,
    sae_values,
)
from moe_probe.studies.compare.answer import _judge, course, opening_lines
from moe_probe.studies.compare.facts import short_name
from moe_probe.studies.compare.saes import wilson


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ComparedRun]:
    """Noise, the same with an expert added, the same renumbered, and noise of another seed."""
    root = tmp_path_factory.mktemp("sides")
    plain, added = routing(), routing(ADDED)
    return {
        "plain": side(root, "plain", plain),
        "added": side(root, "added", added),
        "renumbered": side(root, "renumbered", permuted(added)[0]),
        "other": side(root, "other", routing(seed=7)),
    }


@pytest.fixture(scope="module")
def compared(sides: dict[str, ComparedRun]) -> Comparison:
    return compare_opened_runs([sides["plain"], sides["added"]])


def test_renumbered_experts_are_found_again(sides: dict[str, ComparedRun]) -> None:
    order = permuted(routing(ADDED))[1]
    found = align_experts(sides["added"], sides["renumbered"])
    table = found.experts.table
    for measure in ("documents", "tokens"):
        mine = table[table["measure"] == measure]
        assert mine["other_expert"].tolist() == order.ravel().tolist()
        np.testing.assert_allclose(mine["score"], 1)
        planted = (mine["layer"] == ADDED.layer) & (mine["expert"] == ADDED.expert)
        assert (mine.loc[~planted, "null"] < 0.5).all() and (mine["second_best"] < 0.9).all()
        if measure == "documents":  # that it serves one topic is in the null
            assert mine.loc[planted, "null"].item() > 0.7
    layers = found.layers.table
    assert (layers.loc[layers["measure"] == "documents", "p_value"] == 1 / 200).all()
    assert (layers["null_mean"] < 0.3).all() and (layers["same_number_mean"] < 0.5).all()


def test_renumbered_experts_differ_in_nothing(sides: dict[str, ComparedRun]) -> None:
    found = compare_opened_runs([sides["added"], sides["renumbered"]])
    topics = found["comparison_topics"].table
    np.testing.assert_allclose(topics["difference"], 0, atol=1e-12)
    assert not found["comparison_differences"].table["beyond"].any()
    changes = found["comparison_changes"].table
    assert not changes["changed"].any() and changes["same_experts"].tolist() == ["", "", "yes", "", "", ""]
    assert "Where both have an expert, matched by what it does: it is the same for topic-2." in found.headlines
    assert found["comparison_saturation"].table["saturation"].max() < 0.6  # by number, the choices are others


def test_two_seeds_of_noise_make_no_claim(sides: dict[str, ComparedRun]) -> None:
    found = compare_opened_runs([sides["plain"], sides["other"]])
    # the loads of two seeds really differ, in one layer this way and in the other that way
    assert found.headlines[0].startswith(
        "Balance differs both ways (effective experts 98.6% of all in other, 98.4% in plain;"
    )
    assert found.headlines[0].endswith("; specialisation does not differ significantly. Neither is collapsed.")
    assert found.headlines[1] == "plain against other: no verdict of 6 changed."
    topics = found["comparison_topics"].table
    assert (topics["method"] == "independent bootstrap, 120 and 120 groups").all()
    assert ((topics["ci_low"] < 0) & (topics["ci_high"] > 0)).all() and not topics["beyond"].any()
    told = found["comparison_layers"].table.query("measure in ['decode_accuracy', 'mi_bits']")
    assert ((told["ci_low"] < 0) & (told["ci_high"] > 0)).all()
    assert "aligned_experts" not in found
    assert any("matched by what they do on the same documents" in note for note in found.notes)


def test_an_added_expert_is_the_one_change(compared: Comparison) -> None:
    changes = compared["comparison_changes"].table
    changed = changes[changes["changed"]]
    assert changed[["topic", "verdict_a", "verdict_b", "beyond"]].to_numpy().tolist() == [
        ["topic-2", "none", "expert", True]
    ]
    assert changed["why"].iloc[0].startswith("None in plain, an expert in added. Lift 1.")
    topics = compared["comparison_topics"].table
    assert topics.loc[topics["difference"].abs().argmax(), "topic"] == "topic-2"
    assert topics.loc[2, "beyond"] and topics.loc[2, ["layer_b", "experts_b"]].tolist() == [ADDED.layer, str(ADDED.expert)]
    # it takes tokens from the other experts of its layer, whose lifts for other topics rise a little, and surely
    others = topics[topics["beyond"] & (topics["topic"] != "topic-2")]
    assert (others["difference"] < 0.15).all() and (others["layer_a"] == ADDED.layer).all()
    bits = compared["comparison_layers"].table.query("measure == 'mi_bits'").set_index("layer_a")["beyond"]
    assert bits.to_dict() == {0: False, 1: True}
    first, second = compared.headlines[:2]
    assert "added is more specialised (lift of the best expert higher in" in first and first.endswith(
        "Neither is collapsed."
    )
    assert second == "plain against added: 1 of 6 verdicts changed: topic-2, none to expert."
    assert repr(compared).splitlines() == compared.headlines and first.split("(")[0] in compared._repr_html_()


def answers(*layers: tuple[str, list[float], bool], topics: list[float], collapsed: str = "none") -> list[str]:
    """First lines of a comparison of a and b in two layers: differences by measure, and whether they are beyond chance."""
    pair = {"side_a": "a", "side_b": "b", "value_a": 0.5}
    rows = [
        pair | {"measure": m, "value_b": 0.5 + d, "difference": d, "beyond": beyond, "p_value": 0.01}
        for m, differences, beyond in layers
        for d in differences
    ]
    lifts = [pair | {"value_b": d, "difference": d, "beyond": d != 0, "p_value": 0.01, "topic": str(d)} for d in topics]
    runs = [
        {"what": "collapsed layers", "side": s, "value": v, "differs": v != "none"}
        for s, v in (("a", "none"), ("b", collapsed))
    ]
    tables = {"comparison_layers": rows, "comparison_topics": lifts, "comparison_runs": runs}
    return opening_lines({name: Result(name, pd.DataFrame(table)) for name, table in tables.items()})


def test_the_answer_names_the_run_that_is_better_balanced_and_the_more_specialised_one() -> None:
    up, down, even = [0.1, 0.2], [-0.1, -0.2], [0.0, 0.0]

    def told(balance: list[float], bits: list[float], topics: list[float], **more: str) -> str:
        (line,) = answers(("effective_share", balance, any(balance)), ("mi_bits", bits, any(bits)), topics=topics, **more)
        return line

    assert told(up, up, up).startswith(
        "b is better balanced (effective experts 65.0% of all in b, 50.0% in a; higher in 2 of 2 layers)"
    )
    assert " and more specialised (lift of the best expert higher in 2 of 2 topics" in told(up, up, up)
    assert told(down, up, up).startswith("a is better balanced (") and "; b is more specialised (" in told(down, up, up)
    assert "b is more specialised (bits about the topic 0.650 in b" in told(even, up, even)
    assert told(even, up, even).startswith("b is more") and "balance does not differ significantly" in told(even, up, even)
    assert "a is more specialised" in told(even, even, down) and "Specialisation differs both ways (lifts" in told(
        even, up, down
    )
    assert told([0.1, -0.1], even, even).startswith("Balance differs both ways (")
    assert told(even, even, even).startswith("No significant difference between a and b")
    assert told(up, even, even, collapsed="1, 4").endswith("b is collapsed in layers 1, 4.")
    untested = pd.DataFrame({"difference": [0.3], "beyond": [False], "p_value": [np.nan]})
    assert not _judge(untested, "a", "b").tested


def test_three_runs_are_told_in_the_order_given(sides: dict[str, ComparedRun]) -> None:
    found = compare_opened_runs([sides["plain"], sides["other"], sides["added"]])
    first, second, *rest = found.headlines
    assert (
        first.startswith("First to last (plain to added): ")
        and "added is more specialised (" in first
        and "None is collapsed." in first
    )
    assert second.startswith("In the order given (plain, other, added): effective experts ")
    layers = found["comparison_layers"].table.query("measure == 'mi_bits'").groupby("side_b")[["value_a", "value_b"]].mean()
    values = [layers.loc["added", "value_a"], layers.loc["other", "value_b"], layers.loc["added", "value_b"]]
    assert f"bits about the topic {', '.join(f'{v:.3f}' for v in values)} ({course(values)})" in second
    assert "topics with an expert 0, 0, 1 (rising throughout)" in second
    assert len(set(found.headlines)) == len(found.headlines) and not any("other" in line for line in rest)
    assert (
        course([1, 3, 2]) == "not monotone" and course([3, 2, 2]) == "falling throughout" and course([1, 1]) == "unchanged"
    )
    assert course([1, np.nan]) == "not all known"


def test_a_collapsed_run_is_named(sides: dict[str, ComparedRun]) -> None:
    plain = sides["plain"]
    layers = plain.results["layers"]
    narrow = replace(layers, table=layers.table.assign(effective_experts=1.5))
    assert collapsed_layers(plain.manifest.layers, plain.results) == {}
    assert list(collapsed_layers(plain.manifest.layers, {"layers": narrow})) == [0, 1]
    loads = pd.DataFrame({"layer": [1] * 8, "expert": range(8), "load": [0.86, *[0.02] * 7]})
    found = collapsed_layers(plain.manifest.layers, {"experts": Result("experts", loads)})
    assert list(found) == [1] and "expert 0 serves" in found[1]


def test_values_are_those_of_the_runs(compared: Comparison, sides: dict[str, ComparedRun]) -> None:
    topics, layers = compared["comparison_topics"].table, compared["comparison_layers"].table
    for letter, name in (("a", "plain"), ("b", "added")):
        np.testing.assert_allclose(topics[f"value_{letter}"], sides[name].results["verdicts"].table["log2_lift"])
        stored = sides[name].results["layers"].table
        for measure, column in (
            ("decode_accuracy", "decode_accuracy"),
            ("mi_bits", "mi_topic_bits"),
            ("load_cv", "load_cv"),
            ("effective_experts", "effective_experts"),
            ("entropy_bits", "entropy_bits"),
        ):
            np.testing.assert_allclose(layers.loc[layers["measure"] == measure, f"value_{letter}"], stored[column])
    every = compared["comparison_differences"].table
    assert len(every) == len(topics) + len(layers)
    np.testing.assert_array_equal(every["difference"], np.concatenate([topics["difference"], layers["difference"]]))


def test_pairing_narrows_intervals(sides: dict[str, ComparedRun], tmp_path: Path) -> None:
    """The same documents under other names cannot be paired: the difference is the same, its interval wider."""
    given = routing(ADDED)
    renamed = replace(
        given,
        documents=given.documents.assign(
            document=[f"x{d}" for d in given.documents["document"]], group=[f"x{d}" for d in given.documents["group"]]
        ),
    )
    apart = side(tmp_path, "apart", renamed)
    paired = compare_topics(sides["plain"], sides["added"]).table
    independent = compare_topics(sides["plain"], apart).table
    assert paired["method"].iloc[0].startswith("paired bootstrap, 120 groups")
    np.testing.assert_allclose(paired["difference"], independent["difference"])
    width = [(t["ci_high"] - t["ci_low"]).mean() for t in (paired, independent)]
    assert width[0] < 0.95 * width[1]


def test_resamples_keep_the_variance_of_small_cells() -> None:
    values = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    draws = Resamples.pooled(5, n=20_000, seed=0).means(values)
    assert draws[0] == values.mean()
    assert np.var(draws[1:]) == pytest.approx(values.var(ddof=1) / 5, rel=0.03)


def test_stored_intervals_serve_without_traces(sides: dict[str, ComparedRun]) -> None:
    found = compare_opened_runs([replace(sides[n], trace=None) for n in ("plain", "added")])
    topics = found["comparison_topics"].table
    assert topics["method"].str.startswith("stored intervals").all()
    assert topics.loc[topics["beyond"], "topic"].tolist() == ["topic-2"]
    layers = found["comparison_layers"].table
    assert layers["difference"].notna().all() and layers["ci_low"].isna().all()
    assert set(found["comparison_left_out"].table["question"]) == {"which expert is which", "router saturation"}


def test_tokens_are_compared_only_where_they_are_the_same(sides: dict[str, ComparedRun], tmp_path: Path) -> None:
    """Other tokenizers, or counts alone: documents are compared, and a sentence says why tokens are not."""
    corpus = sides["plain"].manifest.corpus.model_copy(update={"hash": "c" * 64})
    one, other = (
        replace(sides[n], manifest=sides[n].manifest.model_copy(update={"tokenizer_hash": h * 64, "corpus": corpus}))
        for n, h in (("plain", "a"), ("added", "b"))
    )
    found = align_experts(one, other)
    assert set(found.experts.table["measure"]) == {"documents"}
    assert any("different tokenizers" in note for note in found.experts.warnings)
    counts = replace(other, manifest=other.manifest.model_copy(update={"tokenizer_hash": "", "kept": ("usage",)}))
    compared = compare_opened_runs([one, counts])
    assert any("counts per document only" in note for note in compared.notes)
    assert (compared["comparison_topics"].table["method"].str.startswith("paired")).all()


def test_topics_that_only_one_has_are_left_out(sides: dict[str, ComparedRun], tmp_path: Path) -> None:
    given = routing()
    fewer = replace(
        given,
        documents=given.documents.assign(topic=given.documents["topic"].replace({"topic-0": "else", "topic-1": "else"})),
    )
    found = pair_runs(sides["plain"], side(tmp_path, "fewer", fewer))
    assert found.topics == ("topic-2", "topic-3", "topic-4", "topic-5") and found.whole == (False, False)
    assert any("40 shared documents have another topic" in note for note in found.notes)
    assert any("2 of 6 topics of plain are not in the other" in note for note in found.notes)
    layers = compare_layers(sides["plain"], sides["plain"], pairing=found).table
    assert layers["difference"].notna().all()


def test_models_of_other_shapes(sides: dict[str, ComparedRun], tmp_path: Path) -> None:
    """Layers are matched by depth, of eight experts six find a partner, and loads are compared as shares of all."""
    corpus = sides["plain"].manifest.corpus.model_copy(update={"hash": "c" * 64})
    one = replace(sides["plain"], manifest=sides["plain"].manifest.model_copy(update={"corpus": corpus}))
    other = side(tmp_path, "deeper", routing(n_layers=3, num_experts=6), corpus=corpus)
    found = compare_opened_runs([one, other])
    experts = found["aligned_experts"].table
    assert experts.groupby("layer")["other_layer"].first().to_dict() == {0: 0, 1: 2}
    assert experts.groupby("layer")["other_expert"].count().tolist() == [6, 6] and len(experts) == 16
    assert experts["same_number_score"].isna().all()
    shares = found["comparison_layers"].table.query("measure == 'effective_share'")
    assert ((shares[["value_a", "value_b"]] > 0.8) & (shares[["value_a", "value_b"]] <= 1)).all(axis=None)
    assert any("matched by relative depth" in n for n in found.notes)
    assert any("No shared document has the same tokens" in n for n in found.notes)


def test_what_cannot_be_compared_says_so(sides: dict[str, ComparedRun], tmp_path: Path) -> None:
    given = routing()
    strange = side(
        tmp_path, "strange", replace(given, documents=given.documents.assign(topic="x" + given.documents["topic"]))
    )
    with pytest.raises(MoeProbeError, match="plain and strange cannot be compared: they have no topic in common"):
        compare_opened_runs([sides["plain"], strange])
    with pytest.raises(UsageError, match="plain and twin are one run under one label"):
        compare_opened_runs([sides["plain"], replace(sides["plain"], name="twin")])
    with pytest.raises(UsageError, match="two sides have the same name"):
        compare_opened_runs([sides["plain"], sides["plain"]])
    with pytest.raises(MoeProbeError, match="plain alone cannot be compared: it has no SAEs"):
        compare_opened_runs([sides["plain"]])
    with pytest.raises(MoeProbeError, match="topic and subtopic cannot be compared: two labels"):
        pair_runs(sides["plain"], replace(sides["other"], label="subtopic"))
    with pytest.raises(MoeProbeError, match="has no result 'layers'"):
        compare_opened_runs(
            [sides["plain"], replace(sides["added"], results={"verdicts": sides["added"].results["verdicts"]})]
        )


def test_two_labels_of_one_trace(tmp_path: Path) -> None:
    """A planted topic expert follows the topic; a label drawn at random explains nothing."""
    given = routing(ADDED)
    mood = np.random.default_rng(3).permutation(np.repeat(["calm", "merry"], len(given.documents) // 2))
    run = write_run(tmp_path / "run", replace(given, documents=given.documents.assign(mood=mood)))
    found = compare_runs([run], by=["topic", "mood"])
    assert found.sides == ["topic", "mood"] and "comparison_changes" not in found
    experts = found["comparison_experts"].table.set_index(["layer", "expert"])
    planted = experts.loc[(ADDED.layer, ADDED.expert)]
    assert planted["follows"] == "topic" and planted["value_a"] > 0.5 and planted["value_b"] < 0.1
    assert (experts["follows"] != "mood").all() and abs(experts["value_b"].mean()) < 0.03
    skill = found["comparison_layers"].table.query("measure == 'decode_skill' and layer_a == 1").iloc[0]
    assert skill["difference"] < 0
    with pytest.raises(MoeProbeError, match="documents have no column 'moods': did you mean 'mood'"):
        compare_runs([run], by=["topic", "moods"])


def test_saes_of_two_widths(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", routing())
    add_saes(run)
    found = compare_runs([run])
    assert found["comparison_saes"].table.set_index(["width", "measure"])["value"].to_dict() == {
        (16, "fvu"): 0.4,
        (16, "dead"): 0.0,
        (16, "ce_recovered"): 0.7,
        (16, "good_labels"): 0.25,
        (16, "topics_carried"): 1.0,
        (64, "fvu"): 0.2,
        (64, "dead"): 0.0,
        (64, "ce_recovered"): 0.9,
        (64, "good_labels"): 0.75,
        (64, "topics_carried"): 2.0,
    }
    gaps = found["comparison_sae_differences"].table.set_index("measure")
    assert gaps.loc["ce_recovered", "difference"] == pytest.approx(0.2) and gaps.loc["ce_recovered", "beyond"]
    assert gaps.loc["good_labels", "beyond"] and gaps["p_value"].notna().sum() == 2
    stored = Result.load(run / "results", "sae_quality")
    quality = stored.table
    named = quality.assign(sae=quality["sae"] + "_again", fvu=0.9)  # of one width: the plain one is compared
    replace(stored, table=pd.concat([named, quality])).save(run / "results")
    again = compare_runs([run])["comparison_sae_differences"].table.set_index("measure")
    assert again.loc["fvu", ["width_a", "width_b", "value_a", "value_b"]].tolist() == [16, 64, 0.4, 0.2]
    expected = binomtest(4, 16).proportion_ci(method="wilson")
    assert wilson(4, 16) == pytest.approx((0.25, expected.low, expected.high))
    unpaired = ComparedRun(
        "x",
        Manifest(model=ModelInfo(id="x"), corpus=CorpusInfo(name="x"), layers=()),
        {"sae_quality": replace(found["comparison_saes"], table=quality.iloc[:1])},
    )
    with pytest.raises(MoeProbeError, match="no two SAEs can be compared"):
        sae_differences(sae_values([unpaired]))


def test_comparison_is_kept_and_read_again(compared: Comparison, tmp_path: Path) -> None:
    compared.save(tmp_path)
    again = Comparison.load(tmp_path)
    assert again.headlines == compared.headlines and again.sides == ["plain", "added"]
    pd.testing.assert_frame_equal(again["comparison_topics"].table, compared["comparison_topics"].table)
    with pytest.raises(MoeProbeError, match="has no table 'comparison_saes'"):
        again["comparison_saes"]
    with pytest.raises(MoeProbeError, match="there is no comparison in"):
        Comparison.load(tmp_path / "none")


def test_paths_do_not_tell_of_the_machine() -> None:
    assert short_name("/home/somebody/models/final") == "models/final" and short_name("allenai/OLMoE") == "allenai/OLMoE"
    assert short_name("C:\\models\\mine\\final") == "mine/final"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moe-probe", "compare", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return write_run(root / "plain", routing()), write_run(root / "added", routing(ADDED))


def test_command_writes_tables_and_says_what_changed(call, runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said, told = call(*runs, "--out", out, "--no-notebook", "--names", "before,after")
    assert status == 0 and "before against after: 1 of 6 verdicts changed: topic-2, none to expert." in said
    assert "paired bootstrap, 120 groups of documents" in told and not (out / "compare.ipynb").exists()
    changes = pd.read_parquet(out / "comparison_changes.parquet")
    assert (out / "comparison_changes.json").exists() and changes["changed"].sum() == 1
    status, _, told = call(*runs, "--out", out, "--no-notebook")
    assert status == 1 and "already contains a comparison" in told and "--force" in told
    (out / "mine.txt").write_text("kept")
    status, said, told = call(*runs, "--out", out, "--no-notebook", "--force", "--json", "--quiet")
    data = json.loads(said)
    assert status == 0 and told == "" and data["sides"] == ["plain", "added"] and (out / "mine.txt").exists()
    assert [c["topic"] for c in data["changed"]] == ["topic-2"] and all(d["beyond"] for d in data["differences"])


def test_mistakes_get_one_sentence(call, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, status, message in (
        ([runs[0], tmp_path / "none"], 1, "there is no run at"),
        ([runs[0], tmp_path], 1, "there is no trace"),
        ([*runs, "--names", "one"], 2, "1 names were given for 2 sides"),
        ([*runs, "--by", "mood"], 1, "documents have no column 'mood'"),
        ([runs[0]], 1, "alone cannot be compared"),
    ):
        found = call(*words, "--out", tmp_path / "out", "--no-notebook", "--quiet")
        assert found[0] == status and message in found[2] and len(found[2].strip().splitlines()) == 1, found
    monkeypatch.setitem(sys.modules, "nbclient", None)
    status, _, said = call(*runs, "--out", tmp_path / "out")
    assert status == 1 and said.strip() == (
        "moe-probe: notebooks need the package nbclient: not installed. Try: pip install "
        "'moe-probe[notebook]', or --no-notebook."
    )
    assert not (tmp_path / "out").exists()


def test_verdicts_are_told_with_their_grade_and_the_rivals_that_were_tested(sides: dict[str, ComparedRun]) -> None:
    verdicts = sides["added"].result("verdicts")
    near = replace(verdicts, table=verdicts.table.assign(grade="near the threshold", verdict="expert", layer=0, experts="3"))
    tested = replace(
        sides["added"],
        results={**sides["added"].results, "verdicts": near, "beyond_vocabulary": sides["added"].results["expert_topics"]},
    )
    found = compare_verdicts([sides["plain"], tested])
    table = found.table[found.table["side"] == tested.name]
    assert set(table["told"]) == {"expert (near the threshold): layer 0, 3"} and set(table["grade"]) == {
        "near the threshold"
    }
    assert any("rivals tested (" in text and "words" in text for text in found.warnings)
