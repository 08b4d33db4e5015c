"""The whole way on a model whose truth is known: usage, features, causes, verdicts; and noise that claims nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch
from support import planted_model
from support.faces import markdown_of
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.results import Result
from moe_probe.recording.trace import Trace

if TYPE_CHECKING:
    from moe_probe.sae import Sae


def moe_probe(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(w) for w in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quick_analyses: None) -> Path:
    root = tmp_path_factory.mktemp("planted")
    model = planted_model.save_model(root / "model")
    corpus = planted_model.write_corpus(root / "corpus.jsonl")
    out = root / "run"
    code, _, err = moe_probe(
        "run",
        model,
        "--corpus",
        corpus,
        "--out",
        out,
        "--dtype",
        "float32",
        "--keep",
        "hidden",
        "--hidden-share",
        1.0,
        "--permutations",
        499,
    )
    assert code == 0, err
    planted_model.save_dictionary(out / "sae" / "layer_00" / "width_00024", Trace.open(out).manifest.model.fingerprint)
    code, _, err = moe_probe("match", out)
    assert code == 0, err
    code, _, err = moe_probe("ablate", out)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def verdicts(run: Path) -> pd.DataFrame:
    return Result.load(run / "results", "verdicts").table.set_index("topic")


def test_the_topic_expert_is_called_one_and_causally_confirmed(verdicts: pd.DataFrame) -> None:
    row = verdicts.loc["topic-0"]
    assert (row["verdict"], row["layer"], row["expert"]) == ("expert", 0, 0)
    assert row["causal"] == "confirmed"
    assert row["ablation_low"] > 0.05
    assert "causally confirmed" in row["sentence"]


def test_the_token_expert_is_not(verdicts: pd.DataFrame) -> None:
    row = verdicts.loc["topic-1"]
    assert row["verdict"] == "none"
    assert row["log2_lift"] > 1 and abs(row["log2_beyond_words"]) < 0.1
    assert "an expert of tokens rather than of the topic" in row["reason"]
    assert row["causal"] == "not confirmed"


def test_two_experts_of_a_topic_are_a_group(verdicts: pd.DataFrame) -> None:
    row = verdicts.loc["topic-2"]
    assert row["verdict"] == "group"
    assert {2, 3} <= {int(e) for e in row["experts"].split("+")}


def test_a_topic_that_only_a_feature_has(verdicts: pd.DataFrame) -> None:
    row = verdicts.loc["topic-3"]
    assert row["verdict"] == "feature only"
    assert row["feature"] == "layer_00/width_00024:0"
    assert row["auroc_feature"] > 0.99
    assert row["feature_beyond_expert_low"] > 0


def test_the_feature_passes_through_as_many_experts_as_any_token(run: Path) -> None:
    carriers = Result.load(run / "results", "carriers").table.set_index(["topic", "kind"])
    row = carriers.loc[("topic-3", "feature")]
    assert row["effective_experts"] > 8
    table = Result.load(run / "results", "feature_experts").table
    mine = table[(table["feature"] == 0) & (table["rank"] == 1)].iloc[0]
    assert mine["effective_experts"] == pytest.approx(row["effective_experts"])
    assert mine["share"] < 0.3


def test_no_other_expert_is_confirmed_on_any_topic(run: Path) -> None:
    table = Result.load(run / "results", "ablation").table
    sure = table[table["confirmed"] & (table["sae"] == "")]
    assert set(zip(sure["members"], sure["topic"], strict=True)) <= {("0", "topic-0"), ("2+3", "topic-2")}


def test_all_ways_of_knocking_out_agree_on_the_planted_expert(run: Path) -> None:
    rises = {}
    for how in ("mask", "zero", "mean"):
        code, out, err = moe_probe("ablate", run, "--expert", "0:0", "--topic", "topic-0", "--how", how, "--json", "--quiet")
        assert code == 0, err
        table = pd.DataFrame(json.loads(out)["ablation"]).set_index("topic")
        rises[how] = table["delta_nats"]
    assert rises["mask"]["topic-0"] == pytest.approx(rises["zero"]["topic-0"], rel=0.05)
    # its output varies with little else than the token's norm, so that the mean in its place keeps most of what it does
    assert abs(rises["mean"]["topic-0"]) < 0.3 * rises["mask"]["topic-0"]
    assert rises["mask"].drop("topic-0").abs().max() < 0.02
    assert Result.load(run / "results", "ablation").params["how"] == "mask", "what was asked beside lies elsewhere"


def test_steering_towards_the_expert_costs_the_other_topics(run: Path) -> None:
    code, out, err = moe_probe(
        "ablate", run, "--expert", "0:0", "--topic", "topic-0", "--how", "steer", "--boost", 60, "--json", "--quiet"
    )
    assert code == 0, err
    table = pd.DataFrame(json.loads(out)["ablation"]).set_index("topic")
    assert (table["delta_nats"].drop("topic-0") > 0.04).all()
    assert abs(table["delta_nats"]["topic-0"]) < 0.01


def dictionary(run: Path, rows: torch.Tensor | None, *, seed: int = 0) -> Sae:
    """An SAE of the router's input whose directions are these rows, or drawn at random."""
    from moe_probe.features.matching.random_directions import random_dictionary
    from moe_probe.sae import load_sae, make_sae

    model = load_sae(run / "sae" / "layer_00" / "width_00024")
    plain = make_sae(model.config)
    made = random_dictionary(plain, l0=4, seed=1000 + seed)
    if rows is not None:
        with torch.no_grad():
            made.W_dec[: len(rows)] = torch.nn.functional.normalize(rows, dim=1)
            made.W_enc.copy_(made.W_dec)
    return made


def router_rows(run: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    weights = load_file(run.parent / "model" / "model.safetensors")
    return weights["model.layers.0.mlp.gate.weight"].float()


def run_with(run: Path, copy: Path, saes: list[Sae]) -> Path:
    """A copy of a run with other SAEs."""
    from moe_probe.sae import save_sae

    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("sae", "results"))
    for i, sae in enumerate(saes):
        save_sae(sae, copy / "sae" / "layer_00" / f"width_00024-seed{i}", training={"held_out_seed": 0})
    return copy


def test_random_dictionaries_match_nothing_and_router_rows_do(run: Path, tmp_path: Path) -> None:
    """The whole command: random directions have some that tell experts, but no more than other random directions do."""
    blind = run_with(run, tmp_path / "blind", [dictionary(run, None, seed=i) for i in range(2)])
    seeing = run_with(run, tmp_path / "seeing", [dictionary(run, router_rows(run))])
    found = {}
    for name, root in (("blind", blind), ("seeing", seeing)):
        code, _, err = moe_probe("match", root)
        assert code == 0, err
        table = Result.load(root / "results", "matches").table
        found[name] = table[table["rank"] == 1]
    assert (found["blind"]["heldout_score"] > 0.55).mean() > 0.3, "against chance they would pass"
    assert (found["blind"]["q_value"] <= 0.05).mean() > 0.5
    assert found["blind"]["significant"].mean() <= 0.05
    assert found["seeing"]["significant"].mean() > 0.3


def test_shuffled_pairs_match_nothing(run: Path) -> None:
    """Firings of other documents tell no expert; the same firings in their own places do."""
    from moe_probe.features.firing import Firings, SplitFirings
    from moe_probe.features.matching.match_features import Rivals, match_features, measure_features
    from moe_probe.features.matching.random_directions import random_dictionary
    from moe_probe.features.matching.routing_split import RoutingSplit
    from moe_probe.features.matching.signals import ordered_firings, read_selections, read_tokens, shuffled
    from moe_probe.sae.held_out import held_out_documents
    from moe_probe.sae.store import readers

    trace = Trace.open(run)
    sae = dictionary(run, router_rows(run))
    parts = readers(trace, sae, held_out_documents(trace))
    own = SplitFirings(*(ordered_firings(sae, reader) for reader in parts))
    split = RoutingSplit(read_selections(trace), read_tokens(trace), own.train.rows, own.held_out.rows)
    nulls = []
    for seed in range(3):
        null = random_dictionary(sae, l0=4, seed=seed)
        nulls.append(split.best_scores(*(ordered_firings(null, reader).matrix for reader in parts)))
    group = split.tokens.group
    moved = SplitFirings(*(Firings(shuffled(f.matrix, group[f.rows], seed=i), f.rows) for i, f in enumerate(own)))
    rivals = Rivals(split.baseline_scores(), nulls)
    tables = [match_features(split, measure_features(split, firings), rivals).matches for firings in (moved, own)]
    assert not tables[0]["significant"].any()
    assert (tables[0]["q_value"] <= 0.05).mean() <= 0.02
    assert abs(tables[0]["heldout_score"].mean() - 0.5) < 0.01
    assert tables[1].loc[tables[1]["rank"] == 1, "significant"].mean() > 0.3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ablate", "--expert", "0:99"), "has no expert 99"),
        (("ablate", "--expert", "nine"), "cannot be read"),
        (("ablate", "--expert", "7:0"), "layer 7"),
        (("ablate", "--feature", "layer_00/width_00024:99"), "does not exist"),
        (("ablate", "--feature", "layer_09/width_00024:1"), "there is no SAE"),
        (("ablate", "--how", "hammer"), "is not known"),
        (("ablate", "--expert", "0:" + "+".join(map(str, range(16)))), "cannot be masked"),
    ],
)
def test_bad_requests_get_a_sentence(run: Path, words: tuple[str, ...], says: str) -> None:
    code, _, err = moe_probe(words[0], run, *words[1:])
    assert code in (1, 2)
    assert says in err.replace("\n", " ")
    assert "Traceback" not in err


def test_matching_needs_features(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("sae"))
    code, _, err = moe_probe("match", bare)
    assert code == 1
    assert "SAE" in err


def test_the_report_tells_it(run: Path) -> None:
    code, _, err = moe_probe("label", run)
    assert code == 0, err
    code, _, err = moe_probe("report", run)
    assert code == 0, err
    text = markdown_of(run)
    for title in (
        "Who carries a topic best",
        "What happens without them",
        "Which features go with which experts",
        "How much of the routing do features predict",
        "Experts one by one",
    ):
        assert title in text
    assert "causally confirmed" in text
    for fact in ("its tokens go through", "experts by effective number", "in the document:"):
        assert fact in text
    # every topic's best feature was knocked out: the cards that speak of one say what that did
    ablated = Result.load(run / "results", "ablation").table
    cards = Result.load(run / "results", "feature_cards").table
    both = {str(f) for f in cards["feature"]} & set(ablated.loc[ablated["sae"] != "", "members"])
    assert both
    assert text.count("nats \\[") > 0


def test_analyzing_again_keeps_what_features_and_causes_said(run: Path, verdicts: pd.DataFrame, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again, symlinks=True)
    code, _, err = moe_probe("analyze", again, "--permutations", 499)
    assert code == 0, err
    table = Result.load(again / "results", "verdicts").table.set_index("topic")
    assert table["causal"].tolist() == verdicts["causal"].tolist() and "confirmed" in set(table["causal"])
    pd.testing.assert_series_equal(table["auroc_feature"], verdicts["auroc_feature"])
