"""Feature splitting: a known hierarchy is recovered from trained dictionaries, and a flat one yields none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.results import Result
from moe_probe.experts.strata import choose_strata
from moe_probe.features.tree import (
    Dictionary,
    Labelling,
    Level,
    Subjects,
    agreement,
    iter_sae_ladders,
    join,
    purity,
    sibling_pairs,
    splitting,
)
from moe_probe.recording.rundir import RunDirectory
from moe_probe.recording.trace import Trace
from moe_probe.report.sections.splitting import splitting_section
from moe_probe.report.sections.subjects import human_lines
from moe_probe.sae import SaeConfig, make_sae

pytestmark = pytest.mark.usefixtures("quick_analyses")
COARSE, PARTS, D = 10, 4, 48


def directions(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coarse directions, and for each four further ones: fine features are sums of the two."""
    rows, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))
    coarse = rows[:COARSE]
    own = np.random.default_rng(seed + 1).normal(size=(COARSE, PARTS, D))
    own /= np.linalg.norm(own, axis=2, keepdims=True)
    return coarse, (coarse[:, None] + 0.8 * own).reshape(-1, D)


def tokens(n: int, seed: int, *, nested: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two coarse features a token and one part of each; or, flat, as many fine features without any parent."""
    rng = np.random.default_rng(seed)
    _, fine = directions()
    which = np.argsort(rng.random((n, COARSE)), axis=1)[:, :2]
    part = which * PARTS + rng.integers(PARTS, size=which.shape)
    if not nested:
        # at right angles, so that no two of them have more to do with each other than any others
        fine = np.linalg.qr(np.random.default_rng(9).normal(size=(D, D)))[0][: len(fine)]
        part = np.argsort(rng.random((n, len(fine))), axis=1)[:, :2]
    size = rng.uniform(0.7, 1.3, which.shape)
    return (size[:, :, None] * fine[part]).sum(1) + 0.01 * rng.normal(size=(n, D)), part


def true_level(rows: np.ndarray, active: np.ndarray) -> Level:
    n, k = active.shape
    firings = sparse.csr_array((np.ones(n * k), active.ravel(), np.arange(0, n * k + 1, k)), shape=(n, len(rows)))
    return Level(rows, firings)


def test_the_true_dictionaries_give_the_true_tree() -> None:
    coarse, fine = directions()
    _, part = tokens(4000, 0, nested=True)
    edges = join(true_level(coarse, part // PARTS), true_level(fine, part))
    assert (edges["parent"] == edges["child"] // PARTS).all() and len(edges) == COARSE * PARTS
    assert (edges["joined_by"] == "both").all() and (edges["relation"] == "part").all()
    assert edges["inside"].min() == 1 and edges["share"].sum() == pytest.approx(COARSE)
    result = splitting(true_level(coarse, part // PARTS), true_level(fine, part), edges)
    assert (result.split, result.kept, result.orphans, result.children) == (1, 0, 0, PARTS)


def test_dictionaries_that_have_nothing_to_do_with_each_other_have_no_tree() -> None:
    """No edge at all, of living features or of dead ones: a table of the same types, and a section that says so."""
    rng = np.random.default_rng(0)
    for rate in (0.3, 0.0):
        narrow, wide = (
            Level(np.eye(6)[3 * i : 3 * i + 3], sparse.csr_array((rng.random((400, 3)) < rate) * 1.0)) for i in (0, 1)
        )
        edges = join(narrow, wide)
        assert edges.empty and edges["parent"].dtype == np.int64 and edges["share"].dtype == np.float64
        result = splitting(narrow, wide, edges)
        assert (result.split, result.kept, result.orphans, result.children) == (0, 0, float(rate > 0), 0)
        assert sibling_pairs(edges, np.zeros(3, dtype=int)) is None
        named = edges.assign(
            **dict.fromkeys(("parent_sae", "child_sae", "parent_label", "child_label", "parent_topic", "child_topic"), ""),
            layer=0,
            parent_width=3,
            child_width=6,
        )
        row = {
            **result._asdict(),
            "layer": 0,
            "parent_width": 3,
            "child_width": 6,
            **dict.fromkeys(
                ("stitched_novel", "seed_agreement", "seed_same", "split_same_width", "novel_same_width"), np.nan
            ),
        }
        section = splitting_section({"tree": Result("tree", named), "splitting": Result("splitting", pd.DataFrame([row]))})
        assert "0% to 0% of features split" in section.finding


def test_a_feature_that_stays_is_not_split() -> None:
    _, fine = directions()
    _, part = tokens(4000, 1, nested=True)
    level = true_level(fine, part)
    edges = join(level, level)
    same = edges[edges["relation"] == "same"]
    assert (same["parent"] == same["child"]).all() and len(same) == len(fine)
    assert splitting(level, level, edges).split == 0


def trained(x: np.ndarray, width: int, k: int, seed: int = 0) -> Level:
    """Train a small TopK SAE, long enough for its few features."""
    sae = make_sae(SaeConfig(architecture="topk", d_in=D, d_sae=width, k=k, hook="router_input", layer=0, seed=seed))
    data = torch.from_numpy(x).float()
    sae.start_from(data[:1000])
    optimiser = torch.optim.Adam(sae.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(500):
        batch = sae.normalise(data[torch.randint(len(data), (512,), generator=generator)])
        loss, _ = sae.loss(batch, sae.choose(batch))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        sae.keep_unit_norm()
    with torch.no_grad():
        latents = sae.eval().encode(data)
    token, slot = np.nonzero(latents.values.numpy() > 0.05)
    firings = sparse.csr_array(
        (latents.values.numpy()[token, slot], (token, latents.indices.numpy()[token, slot])), shape=(len(x), width)
    )
    return Level(sae.W_dec.detach().numpy(), firings)


def named(level: Level, rows: np.ndarray) -> np.ndarray:
    """Find the true feature that each latent is, by cosine."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (level.directions @ unit.T).argmax(1)


@pytest.fixture(scope="module")
def hierarchy() -> tuple[Level, Level, pd.DataFrame]:
    x, _ = tokens(8000, 2, nested=True)
    narrow, wide = trained(x, COARSE, 2), trained(x, COARSE * PARTS, 2)
    return narrow, wide, join(narrow, wide)


def test_a_hierarchy_is_rebuilt_from_trained_dictionaries(hierarchy: tuple[Level, Level, pd.DataFrame]) -> None:
    narrow, wide, edges = hierarchy
    coarse, fine = directions()
    parent, child = named(narrow, coarse), named(wide, fine) // PARTS
    best = edges.sort_values("weight").groupby("child").tail(1)
    right = parent[best["parent"]] == child[best["child"]]
    assert right.mean() >= 0.9
    assert len(best) >= 0.9 * COARSE * PARTS
    assert splitting(narrow, wide, edges).split > 0.6


@pytest.fixture(scope="module")
def flat() -> tuple[np.ndarray, Level, Level]:
    """Tokens of features without parents; a narrow dictionary, which bundles them, and one as wide as they are many."""
    x, _ = tokens(8000, 3, nested=False)
    return x, trained(x, COARSE, 2), trained(x, COARSE * PARTS, 2)


def test_only_a_real_hierarchy_is_found_again_by_another_seed(
    hierarchy: tuple[Level, Level, pd.DataFrame], flat: tuple[np.ndarray, Level, Level]
) -> None:
    """Features without parents: a narrow dictionary bundles them all the same, and another seed bundles them differently."""
    _, wide, edges = hierarchy
    nested, _ = tokens(8000, 2, nested=True)
    assert agreement(edges, join(trained(nested, COARSE, 2, seed=1), wide)) > 0.8
    x, narrow, finer = flat
    bundles = [join(level, finer) for level in (narrow, trained(x, COARSE, 2, seed=1))]
    assert agreement(*bundles) < 0.5
    assert (bundles[0]["joined_by"] == "both").sum() < 0.3 * COARSE * PARTS


def test_a_flat_dictionary_with_labels_at_random_passes_no_test(flat: tuple[np.ndarray, Level, Level]) -> None:
    """The bundles of a trained narrow dictionary look like a tree; labels at random must not make it one of subjects."""
    _, narrow, finer = flat
    edges = join(narrow, finer)
    group = np.repeat(np.arange(40), 200)
    rates = np.stack([(finer.matrix[group == g].toarray() > 0).mean(0) for g in range(40)])
    counts = np.bincount(finer.matrix.indices, minlength=COARSE * PARTS)
    pairs = sibling_pairs(edges, counts)
    assert pairs is not None and len(pairs.parents) >= 3  # it does "split"
    rejected = nodes = 0
    for seed in range(30):
        topic = Labelling(np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 10)), 4)
        tested = purity(Subjects(rates, counts, topic, None), pairs, permutations=59, seed=seed)
        rejected += tested.tree.p_value <= 0.05
        nodes += bool((tested.q_value <= 0.05).any())
    assert max(rejected, nodes) <= stats.binom.ppf(0.995, 30, 0.05)


def moe_probe(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(w) for w in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(split_run_copy: Path, quick_analyses: None) -> Path:
    return split_run_copy


def test_the_tree_of_a_run_and_a_walk_down_it(run: Path) -> None:
    code, out, err = moe_probe("tree", run)
    assert code == 0, err
    assert "seed_agreement" in out
    edges, sums = (Result.load(run / "results", name).table for name in ("tree", "splitting"))
    assert list(edges.columns[:8]) == [
        "layer",
        "parent_width",
        "parent",
        "child_width",
        "child",
        "weight",
        "parent_topic",
        "child_topic",
    ]
    assert sums[["seed_agreement", "seed_same"]].notna().all(axis=None)
    row = edges.iloc[0]
    code, out, err = moe_probe("tree", run, "--walk", f"{row['parent_sae']}:{row['parent']}")
    assert code == 0, err
    assert out.splitlines()[0].startswith(f"{row['parent_sae']}:{row['parent']}") and "inside" in out


def test_later_stages_permute_within_the_strata_of_the_run(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    trace = Trace.open(copy)
    assert choose_strata(copy, trace, by="topic") is None
    stored = json.loads((copy / "results" / "expert_topics.json").read_text())
    stored["params"]["strata"] = "register"
    (copy / "results" / "expert_topics.json").write_text(json.dumps(stored))
    assert choose_strata(copy, trace, by="topic") == "register"
    assert choose_strata(copy, trace, by="register") is None, "no label is permuted within itself"
    assert choose_strata(copy, trace, by="topic", given="none") is None
    for command, name in (("tree", "tree_subjects"), ("label", "features")):
        code, _, err = moe_probe(command, copy)
        assert code == 0, err
        result = Result.load(copy / "results", name)
        assert result.params["strata"] == "register" and "within each register" in result.caption
    code, _, err = moe_probe("tree", copy, "--no-null", "--strata", "source")
    tested = Result.load(copy / "results", "tree_subjects").table
    assert code == 0 and "no labels can be exchanged" in " ".join(err.split()), "every source has one topic"
    assert tested[["p_labels", "p_value"]].isna().all(axis=None), "not tested is not p 1"
    assert (tested["judged"] == 0).all() and human_lines({"tree_subjects": Result("tree_subjects", tested)}).startswith(
        ("Not testable", "No node")
    )
    code, _, err = moe_probe("label", copy, "--strata", "source")
    assert code == 0 and "every stratum holds a single topic" in " ".join(err.split())
    assert (Result.load(copy / "results", "features").table["topic"] == "").all()
    code, _, err = moe_probe("tree", copy, "--strata", "none", "--no-null")
    assert code == 0 and "no labels can be exchanged" not in " ".join(err.split())
    assert Result.load(copy / "results", "tree_nodes").params["strata"] is None
    for strata, message in (("regster", "is not a label column"), ("topic", "is the label that is tested")):
        for command in ("tree", "label"):
            code, _, err = moe_probe(command, copy, "--strata", strata)
            assert code == 2 and message in " ".join(err.split())


@pytest.fixture(scope="module")
def nested_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, quick_analyses: None) -> Path:
    """One Matryoshka SAE, whose nested parts are the levels; topics have words of their own."""
    root = tmp_path_factory.mktemp("nested")
    rng = np.random.default_rng(0)
    lines = [
        json.dumps(
            {
                "id": f"d{i}",
                "topic": f"topic-{i % 3}",
                "subtopic": f"part-{i // 3 % 2}",
                "text": " ".join(f"w{w + 30 * (i % 3)}" for w in rng.integers(30, size=50)),
            }
        )
        for i in range(48)
    ]
    (root / "corpus.jsonl").write_text("\n".join(lines))
    code, _, err = moe_probe(
        "run",
        checkpoint,
        "--corpus",
        root / "corpus.jsonl",
        "--out",
        root / "run",
        "--permutations",
        99,
        "--widths",
        64,
        "--architecture",
        "matryoshka",
        "--layers",
        1,
        "--k",
        6,
        "--hidden-share",
        1.0,
    )
    assert code == 0, err
    return root / "run"


def test_the_parts_of_a_matryoshka_sae_are_levels(nested_run: Path) -> None:
    (ladder,) = iter_sae_ladders(RunDirectory.open(nested_run))
    levels = ladder.dictionaries
    assert ladder.sae == levels[0].name
    assert [level.width for level in levels] == [4, 8, 16, 32, 64]
    assert [level.first for level in levels] == [0, 4, 8, 16, 32]
    whole = levels[0].sae.W_dec.detach().numpy()
    for level in levels:
        assert (level.directions == whole[level.first : level.width]).all()
        assert level.held_out.matrix.shape[1] == level.width - level.first
    retrained: dict[str, Dictionary] = {}
    other = levels[1].retrain_with_seed(retrained)
    assert (other.first, other.width) == (4, 8) and levels[2].retrain_with_seed(retrained).sae is other.sae  # trained once
    assert (other.directions != levels[1].directions).any()
    assert (
        levels[0].sae.config.architecture == "jumprelu" and other.origin.architecture == "matryoshka"
    )  # not as it is saved


def test_the_tree_of_a_matryoshka_sae(nested_run: Path) -> None:
    results = {name: Result.load(nested_run / "results", name).table for name in ("tree", "splitting", "tree_subjects")}
    edges, sums = results["tree"], results["splitting"]
    assert list(zip(sums["parent_width"], sums["child_width"], strict=True)) == [(4, 8), (8, 16), (16, 32), (32, 64)]
    first = edges["parent_width"].map({4: 0, 8: 4, 16: 8, 32: 16})
    assert ((edges["parent"] >= first) & (edges["parent"] < edges["parent_width"])).all()
    assert ((edges["child"] >= edges["parent_width"]) & (edges["child"] < edges["child_width"])).all()
    assert sums["stitched_novel"].isna().all() and sums["seed_same"].between(0, 1).all()
    facts = Result.load(nested_run / "results", "features").table.set_index("feature")["label"].astype(str)
    assert (edges["child_label"] == facts.loc[edges["child"]].to_numpy()).all()
    assert "Do features split along human lines" in (nested_run / "report.md").read_text()
    for words in (["--word", "w3"], ["--depth-first", "auto", "--depth-width", 4]):
        code, _, err = moe_probe("tree", nested_run, *words)
        assert code == 0, err


@pytest.mark.parametrize(("walk", "message"), [("twelve", "cannot be read"), ("layer_01/width_00016:99", "no children")])
def test_a_walk_from_nowhere_gets_a_sentence(run: Path, walk: str, message: str) -> None:
    moe_probe("tree", run, "--no-null")
    code, _, err = moe_probe("tree", run, "--walk", walk)
    assert code == 2
    assert message in err.replace("\n", " ")


def test_an_imported_sae_is_not_trained_again(run: Path, tmp_path: Path) -> None:
    import json
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = sorted(copy.glob("sae/*/width_*/cfg.json"))[0]
    config = json.loads(path.read_text())
    config["metadata"]["moe_probe_training"] = {"loaded_from": "elsewhere", "held_out_seed": 0}
    path.write_text(json.dumps(config))
    code, out, err = moe_probe("tree", copy)
    assert code == 0, err
    assert f"{path.parent.parent.name}/{path.parent.name} was loaded from elsewhere" in " ".join((out + err).split())
    table = pd.read_parquet(copy / "results" / "splitting.parquet").set_index("parent_sae")
    assert table["seed_agreement"].isna().to_dict()[f"{path.parent.parent.name}/{path.parent.name}"]


def test_training_options_that_were_not_recorded_are_named(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = sorted(copy.glob("sae/*/width_00016*/cfg.json"))[0]
    config = json.loads(path.read_text())
    del config["metadata"]["moe_probe_training"]["epochs"]
    path.write_text(json.dumps(config))
    code, _, err = moe_probe("tree", copy)
    assert code == 0, err
    recorded, assumed = ("; ".join(Result.load(p / "results", "splitting").warnings) for p in (run, copy))
    assert "does not record how it was trained; assumed: epochs 4." in assumed
    assert "assumed" not in recorded


def test_one_width_is_no_tree(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(next(copy.glob("sae/*/width_00064*")))
    code, _, err = moe_probe("tree", copy)
    assert code == 1
    assert "two widths" in err
