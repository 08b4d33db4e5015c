"""Depth-first training, stitching, concepts, and walks from a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from support.corpora import write_corpus
from support.faces import markdown_of
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.flops import sae_encode_flops, sae_train_flops
from moe_probe.core.results import Result
from moe_probe.features.tree import (
    DepthOptions,
    Sample,
    SubjectTester,
    TreeSettings,
    distinctive_words,
    grow,
    split_of_concept,
    stitched_change,
)
from moe_probe.recording.trace import Trace

pytestmark = pytest.mark.usefixtures("quick_analyses")
BASE: dict[str, object] = {"layer": 0, "hook": "router_input"}


def hierarchy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations of one of three features, each with one of three parts of its own; feature and part of every token."""
    rng = np.random.default_rng(seed)
    rows = np.linalg.qr(np.random.default_rng(7).normal(size=(16, 16)))[0]
    feature, part = rng.integers(3, size=n), rng.integers(3, size=n)
    x = 2 * rows[feature] + rows[3 + 3 * feature + part] + 0.02 * rng.normal(size=(n, 16))
    return x.astype(np.float32), feature, 3 * feature + part


def test_going_down_finds_the_parts_of_every_feature() -> None:
    x, feature, part = hierarchy(6000, 0)
    held, _, held_part = hierarchy(1500, 1)
    options = DepthOptions(width=8, k=1, depth=2, min_tokens=400, passes=20)
    nodes = grow(torch.from_numpy(x), torch.from_numpy(held), options=options, base=BASE)
    assert nodes[0].path == () and {len(node.path) for node in nodes[1:]} == {1}
    for node, truth in [(nodes[0], feature), *((child, part) for child in nodes[1:])]:
        row, latent, _ = node.train
        most = sum(np.bincount(truth[row[latent == f]]).max() for f in np.unique(latent))
        assert most / len(row) > 0.9  # each latent is about one feature, or one part of it
    for node in nodes:
        batch = min(2048, max(64, node.tokens // 16))
        expected = node.tokens * (20 * sae_train_flops(16, 8, 1, batch_tokens=batch) + sae_encode_flops(16, 8))
        assert node.flops == pytest.approx(expected)
    parts_of_latents = {
        int(np.bincount(held_part[row[latent == f]]).argmax())
        for row, latent, _ in (n.held_out for n in nodes[1:])
        for f in np.unique(latent)
    }
    assert parts_of_latents == set(range(9))


def test_it_stops_where_there_is_nothing_to_learn_from() -> None:
    x = torch.from_numpy(hierarchy(50, 0)[0])
    assert grow(x, x, options=DepthOptions(width=3, k=1, min_tokens=60), base=BASE) == []
    x = torch.from_numpy(hierarchy(3000, 0)[0])
    assert len(grow(x, x, options=DepthOptions(width=3, k=1, min_tokens=60, passes=2, most=2), base=BASE)) == 2


def test_stitching_separates_what_is_new_from_what_is_there() -> None:
    rng = np.random.default_rng(0)
    d = np.eye(4)[:2]  # the narrower dictionary knows the first direction, the residual holds the second
    residual = np.zeros((100, 4))
    residual[:, 1] = rng.uniform(0.5, 1.5, 100)
    z = sparse.csr_array(np.column_stack([np.ones(100), residual[:, 1]]))
    change = stitched_change(residual, z, d)
    assert change == pytest.approx([1.0, -np.square(residual[:, 1]).mean()])
    by_hand = [
        np.square(residual - z.toarray()[:, [j]] * d[j]).sum(1).mean() - np.square(residual).sum(1).mean() for j in (0, 1)
    ]
    assert change == pytest.approx(by_hand)


def concept(n: int, seed: int, *, parts: int) -> Sample:
    """Draw a concept that `parts` features share out among its tokens; other features fire at random."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    z = (rng.random((n, 6)) < 0.1) * 1.0
    z[:, :parts] = 0
    z[np.flatnonzero(y), rng.integers(parts, size=y.sum())] = 1.0
    x = z @ np.eye(6) + 0.01 * rng.normal(size=(n, 6)) + y[:, None] * np.eye(6)[5] * 0.5
    return Sample(x, sparse.csr_array(z), y)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_concept_takes_as_many_features_as_were_planted(parts: int) -> None:
    split = split_of_concept(concept(4000, 0, parts=parts), concept(2000, 1, parts=parts), np.eye(6))
    assert split.splits == parts and set(split.features) == set(range(parts))
    assert split.f1[parts - 1] > 0.95 and split.probe_f1 > 0.95


def test_absorption_is_what_other_features_carry_where_the_concepts_own_is_silent() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(3000) < 0.4
    absorbed = y & (rng.random(3000) < 0.25)
    z = np.column_stack([y & ~absorbed, absorbed, rng.random(3000) < 0.2]).astype(float)
    decoder = np.eye(3)
    decoder[1] = [0.8, 0.6, 0]  # the absorber holds most of the concept's direction
    x = z @ decoder - (z @ decoder).mean(0)
    plain = z.copy()
    plain[:, 0], plain[:, 1] = y, 0
    half = slice(0, 1500), slice(1500, None)
    train, held_out = (Sample(x[h], sparse.csr_array(z[h]), y[h]) for h in half)
    split = split_of_concept(train, held_out, decoder, most=1)
    assert split.absorption == pytest.approx(absorbed.sum() / y.sum(), abs=0.05)
    train, held_out = (Sample((plain @ decoder)[h], sparse.csr_array(plain[h]), y[h]) for h in half)
    assert split_of_concept(train, held_out, decoder, most=1).absorption == 0, "no feature absorbs the concept"


def test_distinctive_words_are_those_of_one_set_only() -> None:
    codes = [np.array([0] * 30 + [1] * 30), np.array([0] * 30 + [2] * 30), np.full(4, -1)]
    assert distinctive_words(codes, 4, np.array([60, 30, 30, 10])) == [[1], [2], []]


def moe_probe(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(w) for w in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(split_run_copy: Path, quick_analyses: None) -> Path:
    return split_run_copy


def test_a_run_compares_its_tree_with_subjects(run: Path) -> None:
    for name in ("tree", "splitting", "tree_subjects", "tree_nodes", "tree_examples", "concepts", "costs", "cost_projected"):
        assert len(Result.load(run / "results", name).table), name
    subjects = Result.load(run / "results", "tree_subjects").table
    assert list(subjects["tree"]) == ["this run", "parents of another seed", "same width, another seed"]
    text = markdown_of(run)
    assert "Do features split along human lines" in text and "What does it cost, once or on every output?" in text
    row = subjects.iloc[0]
    assert f"{row['purity']:.1%} of the time" in text
    costs = Result.load(run / "results", "costs").table.set_index("step")
    sums = Result.load(run / "results", "splitting").table
    assert sums["parent_width"].tolist() == [16] and sums["novel_same_width"].between(0, 1).all()
    narrow = sae_train_flops(32, 16, 3) / (sae_train_flops(32, 16, 3) + sae_train_flops(32, 64, 3))
    assert costs.loc["tree", "flops"] == pytest.approx(narrow * costs.loc["train SAEs", "flops"])
    concepts = Result.load(run / "results", "concepts").table
    assert (concepts["f1_best"] > 0.6).any()


def test_depth_first_on_the_command_line(run: Path) -> None:
    code, out, err = moe_probe("tree", run, "--depth-first", "auto", "--depth-width", 4, "--depth", 2)
    assert code == 0, err
    table = Result.load(run / "results", "depth_first").table
    assert list(table["way"]) == ["depth first", "breadth first, equal operations", "breadth first", "breadth first"]
    assert (table["distinct"] <= table["good"]).all() and (table["good"] <= table["subject"]).all()
    assert "breadth first" in out
    deep, equal = table.iloc[0], table.iloc[1]
    assert equal["width"] == 16 or 0.9 * deep["operations"] <= equal["operations"] <= deep["operations"]
    code, _, err = moe_probe("report", run)
    assert code == 0, err
    assert "Depth-first and breadth-first" in (run / "report.html").read_text()


def test_a_word_is_followed_down(run: Path) -> None:
    words = [f"w{i}" for i in range(90)]
    walks = [out for word in words[:12] for code, out, _ in [moe_probe("tree", run, "--word", word)] if code == 0]
    assert walks and all("layer_01/width_00016-k3:" in out and "of the word's tokens" in out for out in walks)
    assert any("layer_01/width_00064-k3:" in out for out in walks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--word", "zebra"], "does not occur"),
        (["--depth-first", "layer_01/width_00016:99"], "names no feature"),
        (["--topic", "topic-9"], "topic-"),
        (["--depth-first", "nonsense"], "names no feature"),
    ],
)
def test_invalid_options_get_a_sentence(run: Path, words: list[str], message: str) -> None:
    code, _, err = moe_probe("tree", run, *words)
    assert code in (1, 2)
    assert message in err.replace("\n", " ") and "Traceback" not in err


def test_a_corpus_of_one_topic_has_a_tree_without_subjects(checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents=40)
    text = corpus.read_text().replace("topic-1", "topic-0").replace("topic-2", "topic-0")
    corpus.write_text(text)

    code, _, err = moe_probe("collect", checkpoint, "--corpus", corpus, "--out", tmp_path / "trace")
    assert code == 0, err
    warnings: list[str] = []
    assert not SubjectTester(Trace.open(tmp_path / "trace"), TreeSettings(), warnings).possible
    assert "fewer than two" in warnings[0]
