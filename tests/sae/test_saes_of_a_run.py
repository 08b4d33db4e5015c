"""SAEs of a run from the user's end: train, resume, load, measure, label, find; what is spliced in takes effect."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.corpora import write_corpus
from support.faces import html_of, markdown_of
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.sites import HOOKS
from moe_probe.features.quality import ablated_losses, loss_recovered
from moe_probe.features.spliced_loss import Splice, loss_sample, losses
from moe_probe.models import LoadedModel, load_model
from moe_probe.models.splice import spliced
from moe_probe.recording.collect import CollectOptions, collect_trace
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.trace import Trace
from moe_probe.sae import SaeConfig, load_sae, make_sae, save_sae
from moe_probe.sae.held_out import held_out_documents


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def run(loaded: LoadedModel, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, quick_analyses_drawn: None) -> Path:
    root = tmp_path_factory.mktemp("run")
    corpus = write_corpus(root / "corpus.jsonl", documents=60)
    collect_trace(
        loaded,
        Corpus(str(corpus)),
        root / "trace",
        progress=False,
        options=CollectOptions(
            keep=("routing", "hidden", "residual", "expert_outputs"),
            hidden_share=1.0,
            hidden_layers=(0, 2),
            shard_tokens=700,
        ),
    )
    (root / "run.yaml").write_text(f"model: {checkpoint}\ncorpus: {corpus}\ndtype: float32\n")
    return root


def moe_probe(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(w) for w in words])
    return done.exit_code, done.stdout, done.stderr


def test_only_the_layers_asked_for_are_kept(run: Path) -> None:
    trace = Trace.open(run)
    held = {f.path.rsplit("/", 1)[0] for s in trace.manifest.shards for f in s.files}
    assert held == {"routing", *(f"{kind}/layer_0{i}" for kind in ("hidden", "residual", "expert_output") for i in (0, 2))}
    assert trace.manifest.settings["hidden_layers"] == "0,2"


def test_the_residual_stream_is_what_the_next_layer_reads(loaded: LoadedModel, run: Path) -> None:
    trace = Trace.open(run)
    ids = trace.tokens(["document", "token_id"])
    first = torch.from_numpy(ids[ids["document"] == 0]["token_id"].to_numpy()[:32].astype(np.int64))[None]
    with torch.no_grad():
        states = loaded.model(first, output_hidden_states=True).hidden_states
    kept = next(iter(trace.iter_extras("residual/layer_00")))["values"][: first.shape[1]]
    assert torch.allclose(kept.float(), states[1][0], atol=0.02, rtol=0.02)


def test_train_measure_label_find(run: Path) -> None:
    code, out, err = moe_probe("sae", "train", run, "--layers", "0,2", "--widths", "16,48", "--k", 4)
    assert code == 0, err
    assert sorted(p.parent.relative_to(run / "sae").as_posix() for p in run.glob("sae/*/*/cfg.json")) == [
        f"layer_0{i}/width_000{w}-k4" for i in (0, 2) for w in (16, 48)
    ]
    code, _, err = moe_probe("sae", "train", run, "--layers", 0, "--widths", 16, "--k", 4)
    assert code == 1 and "exists already" in err and "--resume" in err
    code, out, err = moe_probe("sae", "train", run, "--layers", 0, "--widths", 16, "--k", 4, "--resume", "--json")
    assert code == 0 and len(json.loads(out)["saes"]) == 1
    code, out, err = moe_probe("sae", "eval", run, "--tokens", 200)
    assert code == 0 and "ce_recovered" in out, err
    quality = pd.read_parquet(run / "results" / "sae_quality.parquet")
    assert (quality["l0"] <= 4).all() and quality["ce_spliced"].notna().all() and quality["fvu"].between(0, 1.2).all()
    code, out, err = moe_probe("label", run, "--permutations", 99, "--cards", 4)
    assert code == 0 and "good label" in out, err
    features = pd.read_parquet(run / "results" / "features.parquet")
    assert len(features) == 128 and set(features["layer"]) == {0, 2}
    code, out, _ = moe_probe("find", run, "w7", "--json", "--top", 5)
    found = json.loads(out)
    assert code == 0 and found["occurrences"] > 10 and len(found["experts"]) == 5
    assert found["features"][0]["rate"] > found["features"][0]["base"]
    check_columns_of_find(run, found)


def check_columns_of_find(run: Path, found: dict[str, Any]) -> None:
    """Compute rate, base and lift again from arrays, by what the columns say."""
    trace = Trace.open(run)
    table = trace.tokens(["document", "token", "special"])
    inside = ((table["token"] == "w7") & ~table["special"]).to_numpy()
    text = ~table["special"].to_numpy(dtype=bool)
    assert found["occurrences"] == inside.sum()
    routing = np.concatenate([chunk.experts for chunk in trace.iter_routing()])
    for row in found["experts"]:
        chosen = routing[:, row["layer"]]  # every slot of every token is filled, and every layer is a MoE layer
        rate, base = ((chosen[part] == row["expert"]).sum() / chosen[part].size for part in (inside, ~inside))
        assert (row["rate"], row["base"], row["lift"]) == pytest.approx((rate, base, rate / base))
    training = ~held_out_documents(trace)[table["document"].to_numpy()] & text
    for row in found["features"]:
        sae, layer = load_sae(run / "sae" / row["sae"]), row["sae"].partition("/")[0]
        kept = torch.cat([part["values"].float() for part in trace.iter_extras(f"hidden/{layer}")])  # of every token
        assert len(kept) == len(table)
        latents = sae.encode(kept)
        fires = ((latents.indices == row["feature"]) & (latents.values > 0)).any(dim=1).numpy()
        rate, base = fires[inside].mean(), fires[training].mean()
        assert (row["rate"], row["base"], row["lift"]) == pytest.approx((rate, base, rate / base), rel=0.02)
        precision = fires[inside].sum() / (base * len(table))
        assert row["f1"] == pytest.approx(2 / (1 / rate + 1 / precision), rel=0.1)
    said = found["columns"]
    assert "rate: share of the query's tokens" in said["features"] and "lift: rate / base" in said["experts"]


def test_a_query_outside_the_corpus_goes_through_the_model(run: Path, tmp_path: Path) -> None:
    code, out, err = moe_probe("find", run, "w7 w8 w9 w7 w8 w9 w11")
    assert code == 0 and "run through the model by themselves" in out, err
    (tmp_path / "a.txt").write_text("w1 w1 w2 w1")
    (tmp_path / "b.txt").write_text("w5 w6")
    code, out, err = moe_probe("find", run, "--contrast", tmp_path / "a.txt", tmp_path / "b.txt")
    assert code == 0 and "a.txt (4 tokens) against b.txt (2 tokens)" in out, err
    (tmp_path / "b.txt").write_text(" ")
    for words, said in (
        (["zzz", "--regex"], "matches nothing"),
        ([], "find takes"),
        (["--contrast", tmp_path / "a.txt", tmp_path / "b.txt"], "is empty"),
        (["--contrast", tmp_path / "a.txt", tmp_path / "c.txt"], "cannot be read"),
    ):
        code, _, err = moe_probe("find", run, *words)
        assert code in (1, 2) and said in err and "Traceback" not in err


def test_saes_of_every_expert_and_of_groups(run: Path) -> None:
    code, out, err = moe_probe(
        "sae", "train", run, "--layers", 2, "--widths", 8, "--k", 2, "--hook", "expert_output", "--experts", "all", "--json"
    )
    assert code == 0, err
    folders = [Path(p) for p in json.loads(out)["saes"]]
    assert len(folders) >= 6 and folders[0].name.startswith("width_00008-expert_output-e0")
    assert load_sae(folders[0]).config.experts == (0,)
    code, _, err = moe_probe("sae", "train", run, "--layers", 2, "--widths", 8, "--k", 2, "--experts", "1+2,7")
    assert code == 0 and (run / "sae" / "layer_02" / "width_00008-e1+2-k2" / "cfg.json").exists(), err
    for given, said in (("99", "layer 2 has 8"), ("a", "cannot be read")):
        code, _, err = moe_probe("sae", "train", run, "--layers", 2, "--widths", 8, "--experts", given)
        assert code == 2 and said in err


def test_loading_from_elsewhere(run: Path, tmp_path: Path) -> None:
    good = save_sae(make_sae(SaeConfig(d_in=32, d_sae=20, k=3, seed=5)), tmp_path / "good")
    code, out, err = moe_probe("sae", "load", run, good, "--layer", 0, "--hook", "residual")
    assert code == 0 and "width_00020-residual-k3-seed5" in out, err
    wrong = save_sae(make_sae(SaeConfig(d_in=16, d_sae=20, k=3)), tmp_path / "wrong")
    for words, expected_code, message in (
        ([good, "--layer", 0, "--hook", "residual"], 1, "exists already"),
        ([wrong, "--layer", 0], 1, "width 16"),
        ([tmp_path / "none", "--layer", 0], 1, "no SAE in"),
        ([good, "--layer", 1], 1, "--keep hidden"),
        ([good, "--layer", 0, "--hook", "elsewhere"], 2, "unknown activation site"),
    ):
        code, _, err = moe_probe("sae", "load", run, *words)
        assert code == expected_code and message in err and "Traceback" not in err, err


@pytest.fixture
def bare(run: Path, tmp_path: Path) -> Path:
    """A copy of the run without its SAEs."""
    import shutil

    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("sae", "results"))
    return tmp_path / "copy"


def test_two_saes_of_one_width_lie_side_by_side(bare: Path, tmp_path: Path) -> None:
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.ablation import parse_units
    from moe_probe.studies.inspect.inspector import widths_of

    sources = [save_sae(make_sae(SaeConfig(d_in=32, d_sae=20, seed=seed, k=3)), tmp_path / str(seed)) for seed in (0, 0, 1)]
    load = ("sae", "load", bare, "--layer", 0, "--hook", "residual")
    assert moe_probe(*load, sources[0])[0] == 0
    code, _, err = moe_probe(*load, sources[2], "--name", "seed.1")
    assert code == 0, err
    code, _, err = moe_probe(*load, sources[1])
    assert code == 1 and "exists already" in err and "--name NAME to keep both" in err
    code, out, err = moe_probe(*load, sources[1], "--name", "again_2", "--json")
    assert code == 0, err
    folder = bare / "sae" / "layer_00" / "width_00020-residual-k3_again_2"
    assert json.loads(out)["sae"] == str(folder)
    code, _, err = moe_probe(*load, sources[1], "--name", "again_2")
    assert code == 1 and "exists already" in err
    code, out, err = moe_probe(
        "sae", "train", bare, "--layers", 0, "--widths", 16, "--k", 4, "--name", "mine", "--epochs", 1
    )
    assert code == 0 and "width_00016-k4_mine" in out + err, err
    names = {
        "layer_00/width_00016-k4_mine": 16,
        "layer_00/width_00020-residual-k3": 20,
        "layer_00/width_00020-residual-k3_again_2": 20,
        "layer_00/width_00020-residual-k3-seed1_seed.1": 20,
    }
    assert widths_of(bare) == names
    code, _, err = moe_probe("label", bare, "--permutations", 99, "--cards", 1)
    assert code == 0, err
    features = pd.read_parquet(bare / "results" / "features.parquet")
    assert features.groupby("sae").size().to_dict() == names
    (unit,) = parse_units(RunDirectory.open(bare), [], ["layer_00/width_00020-residual-k3-seed1_seed.1:5+7"])
    assert unit.sae == "layer_00/width_00020-residual-k3-seed1_seed.1" and unit.members == (5, 7)
    code, out, err = moe_probe("inspect", bare, "w1 w2 w3", "--sae", "layer_00/width_00020-residual-k3_again_2", "--json")
    assert code == 0 and "width_00020-residual-k3_again_2" in out, err


@pytest.mark.parametrize("name", ["a/b", "..", "-x", "x-", "a b", "a:1", "1+2", "x" * 41, "größe"])
def test_a_name_that_is_no_part_of_a_folder_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    code, _, err = moe_probe("sae", "load", run, tmp_path, "--layer", 0, f"--name={name}")
    assert code == 2 and "cannot be the name of an SAE" in err and "Traceback" not in err
    code, _, err = moe_probe("sae", "train", run, "--layers", 0, f"--name={name}")
    assert code == 2 and "cannot be the name of an SAE" in err and not list(run.glob("sae/*/*größe*"))


def test_a_folder_of_saelens_keeps_its_codes_in_a_run(bare: Path, tmp_path: Path) -> None:
    """Notes are said, nothing is guessed: an architecture without k has none in the table of qualities."""
    from safetensors.torch import save_file

    source = tmp_path / "elsewhere"
    source.mkdir()
    draw = torch.Generator().manual_seed(0)
    w = {
        "W_enc": torch.randn(32, 10, generator=draw),
        "W_dec": torch.randn(10, 32, generator=draw),
        "b_enc": torch.randn(10, generator=draw),
        "b_dec": torch.randn(32, generator=draw),
    }
    save_file(w, source / "sae_weights.safetensors")
    config = {
        "architecture": "standard",
        "d_in": 32,
        "d_sae": 10,
        "dtype": "float32",
        "activation_fn_str": "relu",
        "hook_name": "blocks.7.hook_resid_post",
        "model_name": "m",
        "soft_cap": 30,
    }
    (source / "cfg.json").write_text(json.dumps(config))
    code, _, err = moe_probe("sae", "load", bare, source, "--layer", 0)
    assert code == 1 and "soft_cap 30" in err and "--ignore-field soft_cap" in err and not (bare / "sae").exists()
    code, out, err = moe_probe("sae", "load", bare, source, "--layer", 0, "--ignore-field", "soft_cap", "--name", "pile")
    assert code == 0 and "note: cfg.json says that the SAE was trained at blocks.7.hook_resid_post of m" in out + err, err
    x = torch.randn(40, 32, generator=draw)
    codes = load_sae(bare / "sae" / "layer_00" / "width_00010-standard_pile").encode(x).values
    assert (codes - ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()).abs().max() < 1e-5
    assert moe_probe("sae", "eval", bare, "--tokens", 100)[0] == 0
    quality = pd.read_parquet(bare / "results" / "sae_quality.parquet")
    assert quality[["architecture", "k"]].to_numpy().tolist() == [["standard", 0]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--widths", "0"], "a width of 0 is invalid"),
        (["--widths", "100000"], "cannot be learnt"),
        (["--k", "0"], "--k 0"),
        (["--layers", "1"], "--keep hidden"),
        (["--layers", "9"], "no MoE layer 9"),
        (["--architecture", "topp"], "--architecture"),
        (["--hook", "attention"], "unknown activation site"),
        (["--precision", "int4"], "not known"),
    ],
)
def test_bad_requests_are_one_sentence(run: Path, words: list[str], said: str) -> None:
    code, _, err = moe_probe(
        "sae", "train", run, "--seed", 77, *(["--layers", "0"] if "--layers" not in words else []), *words
    )
    assert code in (1, 2) and said in err and "Traceback" not in err
    assert not list(run.glob("sae/*/*seed77*"))


def test_an_sae_of_other_weights_is_refused(run: Path) -> None:
    folder = run / "sae" / "layer_00" / "width_00010-other"
    try:
        for fingerprint, said in (("another-t1", "trained on another model"), ("another", "as earlier versions did")):
            save_sae(make_sae(SaeConfig(d_in=32, d_sae=10, model_fingerprint=fingerprint)), folder)
            code, _, err = moe_probe("sae", "eval", run)
            assert code == 1 and said in err
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.parametrize("hook", HOOKS)
def test_what_is_spliced_in_takes_effect_and_leaves_no_trace(loaded: LoadedModel, run: Path, hook: str) -> None:
    trace = Trace.open(run)
    sample = loss_sample(trace, held_out_documents(trace), max_tokens=300)
    plain = losses(loaded, sample)
    assert np.abs(losses(loaded, sample, Splice(2, hook, lambda x: x)) - plain).max() < 1e-6
    ablated = ablated_losses(loaded, 2, hook, sample, mean=torch.zeros(32))
    assert np.abs(ablated["zero"] - plain).max() > 1e-6
    with pytest.raises(ZeroDivisionError):
        losses(loaded, sample, Splice(2, hook, lambda x: x * (1 / 0)))
    assert (losses(loaded, sample) == plain).all()


def test_loss_recovered_is_1_for_identity_and_0_for_zeros(loaded: LoadedModel, run: Path) -> None:
    trace = Trace.open(run)
    sample = loss_sample(trace, held_out_documents(trace), max_tokens=300)
    plain, ablated = losses(loaded, sample), ablated_losses(loaded, 2, "residual", sample, mean=torch.ones(32))
    identity = make_sae(SaeConfig(architecture="standard", d_in=32, d_sae=64, hook="residual", layer=2)).eval()
    with torch.no_grad():
        both = torch.cat([torch.eye(32), -torch.eye(32)])
        identity.W_enc.copy_(both)
        identity.W_dec.copy_(both)
    got = loss_recovered(loaded, identity, sample, {"plain": plain, **ablated})
    assert got["ce_recovered"] == pytest.approx(1, abs=1e-3) and got["ce_recovered_mean"] == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        identity.W_dec.zero_()
    got = loss_recovered(loaded, identity, sample, {"plain": plain, **ablated})
    assert got["ce_recovered"] == pytest.approx(0, abs=1e-6)
    tokens = np.array([len(i) - 1 for i in sample.ids])
    assert got["ce_model"] == pytest.approx((tokens @ plain) / tokens.sum())


def test_losses_are_those_of_the_model(loaded: LoadedModel, run: Path) -> None:
    trace = Trace.open(run)
    sample = loss_sample(trace, held_out_documents(trace), max_tokens=200)
    for ids, ours in zip(sample.ids, losses(loaded, replace(sample, batch_tokens=64)), strict=True):
        given = torch.from_numpy(ids)[None]
        with torch.no_grad():
            assert float(loaded.model(given, labels=given).loss) == pytest.approx(ours, rel=1e-5)


def test_a_router_that_reads_something_else_is_noticed(loaded: LoadedModel) -> None:
    site = loaded.sites[0]
    twice = site.block.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    try:  # a hook added later changes what arrives behind ours
        with (
            pytest.raises(MoeProbeError, match="reads something else"),
            spliced(loaded.model, site, "router_input", lambda x: x + 1),
        ):
            site.block.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
            loaded.model(torch.ones(1, 4, dtype=torch.long))
    finally:
        twice.remove()
        site.block._forward_pre_hooks.clear()


def labels_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_persons_labels_override(run: Path, tmp_path: Path) -> None:
    name = "layer_00/width_00016-k4"
    assert moe_probe("sae", "train", run, "--layers", 0, "--widths", 16, "--k", 4, "--resume")[0] == 0
    mine = labels_file(tmp_path / "l.csv", f"sae,feature,label,pattern\n{name},3,my idea,\n{name},5,sevens,w7.?\n")
    code, _, err = moe_probe("label", run, "--permutations", 99, "--cards", 2, "--feature-labels", mine)
    assert code == 0, err
    table = pd.read_parquet(run / "results" / "features.parquet").set_index(["sae", "feature"])
    assert table.loc[(name, 3), "label"] == "my idea" and table.loc[(name, 3), "label_source"] == "human"
    assert np.isnan(table.loc[(name, 3), "label_score"]) and not table.loc[(name, 3), "good"]
    assert 0 <= table.loc[(name, 5), "label_score"] <= 1
    for text, said in (
        ("sae,feature\n", "no column label"),
        (f"sae,feature,label\n{name},99,x\n", "names feature 99"),
        (f"sae,feature,label\n{name},1,x\n{name},1,y\n", "twice"),
        ("sae,feature,label\na,b,c\n", "not numbers"),
        (f"sae,feature,label,pattern\n{name},1,x,(\n", "not a regular expression"),
    ):
        code, _, err = moe_probe(
            "label", run, "--permutations", 99, "--cards", 0, "--feature-labels", labels_file(tmp_path / "bad.csv", text)
        )
        assert code in (1, 2) and said in err and "Traceback" not in err


def test_nothing_is_sent_without_consent(run: Path) -> None:
    assert moe_probe("sae", "train", run, "--layers", 0, "--widths", 16, "--k", 4, "--resume")[0] == 0
    code, _, err = moe_probe(
        "label", run, "--permutations", 99, "--cards", 2, "--llm-url", "http://127.0.0.1:9/v1", "--llm-model", "m"
    )
    assert code == 2 and "requests" in err and "nothing was sent" in err
    code, _, err = moe_probe("label", run, "--permutations", 99, "--llm-url", "http://127.0.0.1:9/v1")
    assert code == 2 and "--llm-model" in err


EVIL = "<script>alert(1)</script></style>|*x*\x1b[31m"


def test_the_report_shows_features_and_hostile_text_as_text(run: Path, tmp_path: Path) -> None:
    import shutil

    from moe_probe.core.results import Result
    from moe_probe.report import write_report
    from moe_probe.studies.analyses import AnalysisSettings, analyze

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert moe_probe("sae", "train", copy, "--layers", 0, "--widths", 16, "--k", 4, "--seed", 3)[0] == 0
    assert moe_probe("sae", "eval", copy, "--tokens", 100)[0] == 0
    assert moe_probe("label", copy, "--permutations", 99, "--cards", 4)[0] == 0
    analyze(Trace.open(copy), copy / "results", settings=AnalysisSettings(permutations=99))
    features, cards = (Result.load(copy / "results", name) for name in ("features", "feature_cards"))
    features.table["label"] = EVIL
    features.table["top_tokens"] = EVIL
    cards.table["tokens"] = [[EVIL] * len(t) for t in cards.table["tokens"]]
    for result in (features, cards):
        result.save(copy / "results")
    write_report(copy)
    html, markdown = html_of(copy), markdown_of(copy)
    assert "What do the features say?" in html and "How faithful are the sparse autoencoders?" in markdown
    shown = re.findall(r'<details class="card"[^>]*><summary>[^<]*, feature \d', html)
    assert len(shown) == len(cards.table.groupby(["sae", "feature"])) > 0
    assert "<script>alert" not in html + markdown and html.count("</style>") == 1 and "\x1b" not in html + markdown
    assert "&lt;script&gt;alert(1)" in html and "&lt;script&gt;alert(1)" in markdown
    assert (copy / "figures" / "sae_pareto.png").stat().st_size > 1000
