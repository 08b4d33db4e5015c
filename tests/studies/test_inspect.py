"""Single outputs looked at: what is shown is what ran, what is watched fires, and nothing is left behind in the model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support import planted_model
from support.corpora import write_corpus
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.flops import sae_encode_flops, shape_of
from moe_probe.core.results import Result
from moe_probe.core.sites import SaeHook
from moe_probe.models import LoadedModel, RoutingCapture, forward_inputs, load_model
from moe_probe.recording.collect import CollectOptions, collect_trace
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.rundir import RunDirectory
from moe_probe.recording.trace import Trace
from moe_probe.report.inspection import render_inspections
from moe_probe.sae import SaeConfig, load_sae, make_sae, save_sae
from moe_probe.sae.held_out import held_out_documents
from moe_probe.studies.inspect import Inspector, Look, inspect_text
from moe_probe.studies.inspect.reference import piece_length
from moe_probe.studies.inspect.terminal import terminal_text

EVIL = "<script>alert(1)</script> \x1b[31mred &amp; {{ 7*7 }}"
QUIET = Look(timing=False)
SAE = "layer_00/width_00024-k6"
SHORT = "m3x1 c4 m3x2 c9 m3x3 c5 c6 m3x4 m3x5 c7"
OTHER = "m1x1 c4 m1x2 c9 m1x3 c5 c6 m1x4 m1x5 c7"


def moe_probe(*words: object, stdin: str | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(w) for w in words], input=stdin)
    return done.exit_code, done.stdout, done.stderr


def tables_of(sae: str, width: int) -> list[Result]:
    """What analyses and labelling would say: feature 0 and expert 0 stand for topics; feature 1's label is hostile."""
    topic = ["topic-3"] + [""] * (width - 1)
    features = pd.DataFrame(
        {
            "layer": 0,
            "width": width,
            "feature": np.arange(width),
            "label": ["topic: three", EVIL] + ["word"] * (width - 2),
            "label_score": [0.93, np.nan] + [0.6] * (width - 2),
            "topic": topic,
            "density": [0.2] + [0.25] * (width - 1),
            "max_activation": 1.0,
            "good": [True] + [False] * (width - 1),
            "sae": sae,
        }
    )
    expert_topics = pd.DataFrame(
        {
            "layer": 0,
            "expert": [0, 0, 2],
            "topic": ["topic-0", "topic-1", "topic-2"],
            "share": 0.5,
            "lift": [4.0, 0.2, 1.5],
            "log2_lift": [2.0, -2.3, 0.58],
            "significant": [True, True, False],
            "replicated": True,
        }
    )
    experts = pd.DataFrame({"layer": 0, "expert": np.arange(16), "explained_by": ["topic"] + ["token"] * 15})
    verdicts = pd.DataFrame(
        {
            "topic": ["topic-0", "topic-1", "topic-2", "topic-3"],
            "verdict": ["expert", "none", "group", "feature only"],
            "layer": 0,
            "expert": [0, -1, 2, -1],
            "experts": ["0", "", "2+3", ""],
            "feature": ["", "", "", f"{sae}:0"],
        }
    )
    layers = pd.DataFrame({"layer": [0], "decode_accuracy": [0.875], "decode_baseline": [0.25]})
    named = {
        "features": features,
        "expert_topics": expert_topics,
        "experts": experts,
        "verdicts": verdicts,
        "layers": layers,
    }
    return [Result(name, table) for name, table in named.items()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model with its trace, a planted SAE, and tables that know what was planted."""
    root = tmp_path_factory.mktemp("inspect")
    model = planted_model.save_model(root / "model")
    corpus = planted_model.write_corpus(root / "corpus.jsonl", documents=24)
    loaded = load_model(model, progress=False)
    collect_trace(
        loaded,
        Corpus(str(corpus)),
        root / "run" / "trace",
        progress=False,
        options=CollectOptions(keep=("routing", "hidden"), hidden_share=1.0),
    )
    planted_model.save_dictionary(root / "run" / "sae" / SAE, loaded.info.fingerprint)
    for result in tables_of(SAE, 24):
        result.save(root / "run" / "results")
    (root / "run" / "run.yaml").write_text(f"model: {model}\ncorpus: {corpus}\n")
    return root / "run"


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedModel:
    return load_model(run.parent / "model", progress=False)


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel]:
    """A run without any results, of a model of three layers that puts a special token in front."""
    root = tmp_path_factory.mktemp("plain")
    loaded = load_model(checkpoint, progress=False)
    collect_trace(
        loaded,
        Corpus(str(write_corpus(root / "corpus.jsonl", documents=12))),
        root / "trace",
        progress=False,
        options=CollectOptions(keep=("routing", "hidden", "residual", "expert_outputs"), hidden_share=1.0),
    )
    shared: dict[str, Any] = {"d_in": 32, "d_sae": 48, "k": 4, "model_fingerprint": loaded.info.fingerprint}
    dictionaries: tuple[tuple[int, SaeHook, tuple[int, ...] | None, str], ...] = (
        (0, "router_input", None, "layer_00/width_00048-k4"),
        (2, "residual", None, "layer_02/width_00048-residual-k4"),
        (2, "expert_output", (1, 3), "layer_02/width_00048-expert_output-e1+3-k4"),
    )
    for layer, hook, experts, name in dictionaries:
        save_sae(make_sae(SaeConfig(layer=layer, hook=hook, experts=experts, **shared)), root / "sae" / name)
    return root, loaded


@pytest.fixture
def long_text() -> str:
    return " ".join(f"w{i}" for i in np.random.default_rng(3).integers(0, 90, 75))


def test_experts_shown_are_those_of_a_trace_of_the_same_text(
    plain: tuple[Path, LoadedModel],
    long_text: str,
    tmp_path: Path,
) -> None:
    root, loaded = plain
    corpus = tmp_path / "one.jsonl"
    corpus.write_text(json.dumps({"id": "a", "topic": "x", "text": long_text}))
    chunk = next(collect_trace(loaded, Corpus(str(corpus)), tmp_path / "trace", progress=False).iter_routing())
    seen = inspect_text(root, long_text, model=loaded, look=QUIET)
    assert seen.call.windows > 1 and seen.call.special.sum() == 1 and len(seen.call.ids) == 76
    assert np.array_equal(seen.call.experts, chunk.experts) and np.array_equal(seen.call.ids, chunk.token_id)
    assert chunk.weights is not None and np.array_equal(seen.call.weights.astype(np.float16), chunk.weights)
    text = ~chunk.special
    for row in seen.experts.itertuples():
        chosen = chunk.experts[text, row.layer] == row.expert
        assert row.share == pytest.approx(chosen.any(1).mean())
        assert row.gate == pytest.approx(chunk.weights[text, row.layer][chosen].astype(float).mean(), rel=1e-3)
    assert seen.experts.groupby("layer")["tokens"].sum().tolist() == [150] * 3
    assert any("expert_topics" in note for note in seen.notes)


def test_features_shown_are_the_encoded_activations(plain: tuple[Path, LoadedModel]) -> None:
    root, loaded = plain
    names = ["layer_00/width_00048-k4", "layer_02/width_00048-residual-k4", "layer_02/width_00048-expert_output-e1+3-k4"]
    text = " ".join(f"w{i}" for i in range(5, 30))
    seen = inspect_text(root, text, model=loaded, look=replace(QUIET, saes=tuple(names)))
    ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
    parts = ("router_input", "residual", "expert_outputs")
    with torch.inference_mode(), RoutingCapture(loaded.model, loaded.sites, keep=parts) as capture:
        loaded.model(**forward_inputs(loaded.model, ids))
        records = capture.take()
        below, top = records[0], records[2]
        assert below.router_input is not None and top.residual is not None and top.expert_outputs is not None
        mask = torch.isin(top.experts, torch.tensor([1, 3], dtype=torch.int16))
        read = (below.router_input, top.residual, (top.expert_outputs * mask[..., None]).sum(1))
        for name, values in zip(names, read, strict=True):
            kept = [i for i in range(1, 26) if "e1+3" not in name or mask[i].any()]
            latents = load_sae(root / "sae" / name).encode(values[kept])
            wanted = np.zeros((26, 48), dtype=np.float32)
            for i, v, f in zip(kept, latents.values, latents.indices, strict=True):
                wanted[i, f] = v
            shown = np.zeros_like(wanted)
            shown[seen.call.latents[name].token, seen.call.latents[name].feature] = seen.call.latents[name].value
            assert np.allclose(shown, wanted, atol=1e-5) and wanted.any()
            table = seen.features[name].set_index("feature")
            assert table["tokens"].to_dict() == {f: n for f, n in enumerate((wanted > 0).sum(0)) if n}
            assert table["max_activation"].to_dict() == pytest.approx({f: wanted[:, f].max() for f in table.index})
    assert [i for i, _ in seen.fires_on(names[0], int(seen.features[names[0]]["feature"][0]))]


def test_what_the_run_knows_stands_beside_its_units(run: Path, loaded: LoadedModel) -> None:
    seen = inspect_text(run, "m0x1 c3 m0x2 c5 m0x4 m0x5 c6 c9 c11 c12", model=loaded, look=QUIET)
    first = seen.experts.iloc[0]
    assert (first["expert"], first["topic"], first["lift"], first["explained_by"]) == (0, "topic-0", 4.0, "topic")
    assert seen.experts.query("expert != 0")["topic"].eq("").all()
    shown = terminal_text(seen, top=24)
    assert re.search(r"topic-0 +×4\.0", shown) and "unscored" in shown and "no label" not in shown
    assert inspect_text(run, SHORT, model=loaded, look=QUIET).features[SAE].iloc[0]["label"] == "topic: three"


def test_topics_are_guessed_and_the_guess_is_scored_on_unseen_documents(run: Path, loaded: LoadedModel) -> None:
    by_experts, by_features = inspect_text(run, "m0x1 c3 m0x2 c5 m0x4 m0x5 c6 c9 c11 c12", model=loaded, look=QUIET).guesses
    assert by_experts.ranking[0][0] == "topic-0" and by_experts.ranking[0][1] > 0.5
    assert by_experts.chance == 0.25 and by_experts.piece_tokens == 8
    assert by_experts.accuracy is not None and by_experts.accuracy > 0.4
    assert sum(p for _, p in by_experts.ranking) == pytest.approx(1)
    assert by_features.source == SAE and [t for t, _ in by_features.ranking] == ["topic-3"]
    seen = inspect_text(run, SHORT, model=loaded, look=QUIET)
    assert seen.guesses[1].ranking[0][1] > 2 and seen.guesses[1].accuracy == pytest.approx(0.25)
    assert "whole documents by layer 0 alone: 88%" in " ".join(terminal_text(seen).split())


@pytest.mark.parametrize(("n", "length"), [(1, 1), (7, 7), (8, 8), (31, 16), (512, 512)])
def test_a_text_is_held_against_pieces_no_longer_than_itself(n: int, length: int) -> None:
    assert piece_length(n) == length


@pytest.mark.parametrize(
    ("what", "text", "more", "fires"),
    [
        (f"{SAE}:0", SHORT, [], True),
        (f"{SAE}:0", OTHER, [], False),
        (f"{SAE}:0", SHORT, ["--threshold", 1000], False),
        ("topic-3", SHORT, [], True),
        ("topic-3", OTHER, [], False),
        ("topic-3", SHORT, ["--threshold", 1], False),
        ("0:0", "m0x1 c3 m0x2 c5 m0x4 m0x5 c6 c9", [], True),
        ("0:0", OTHER, [], False),
        ("0:1", OTHER, ["--threshold", 0.4], True),
        ("0:1", SHORT, ["--threshold", 0.4], False),
        ("topic-0", "m0x1 c3 m0x2 c5 m0x4 m0x5 c6 c9", ["--threshold", 0.9], True),
    ],
)
def test_a_watch_fires_with_status_3_or_stays_quiet(
    run: Path, what: str, text: str, more: list[object], fires: bool
) -> None:
    code, out, err = moe_probe("inspect", run, text, "--watch", what, "--no-timing", *more)
    assert code == (3 if fires else 0), err
    line = next(x for x in out.splitlines() if x.startswith(("FIRED", "quiet")))
    assert line.startswith("FIRED" if fires else "quiet") and what in line
    assert (f"{what} in text" in err) == fires and "Traceback" not in err
    code, out, _ = moe_probe("inspect", run, text, "--watch", what, "--no-timing", "--json", *more)
    alarm = json.loads(out)["texts"][0]["watched"][0]
    assert alarm["fired"] == fires == (alarm["value"] > alarm["threshold"])
    assert code == (3 if fires else 0) and (not fires or alarm["tokens"])


def test_where_a_watched_expert_fires_is_where_it_was_chosen(run: Path, loaded: LoadedModel) -> None:
    seen = inspect_text(run, OTHER, model=loaded, look=Look(watch=("0:1",), threshold=0.1, timing=False))
    assert sorted(seen.alarms[0].tokens) == [i for i, word in enumerate(OTHER.split()) if word.startswith("m1")]
    assert seen.alarms[0].value == pytest.approx(0.5)


@pytest.mark.parametrize(("what", "about"), [("0:0", "topic-0"), ("0:7", ""), ("topic-3", "topic-3")])
def test_a_threshold_that_nobody_gave_is_that_of_held_out_texts(
    run: Path, loaded: LoadedModel, what: str, about: str
) -> None:
    seen = inspect_text(run, SHORT, model=loaded, look=Look(watch=(what,), timing=False))
    trace = Trace.open(run)
    chunk = next(trace.iter_routing())
    hidden = torch.cat([part["values"] for part in trace.iter_extras("hidden/layer_00")])
    latents = load_sae(run / "sae" / SAE).encode(hidden)
    fires = ((latents.indices == 0) & (latents.values > 0)).any(1).detach().numpy()
    chosen = fires if ":" not in what else (chunk.experts[:, 0] == int(what[2:])).any(1)
    beginnings = held_out_documents(trace)[chunk.document] & (chunk.position < 8)
    share = pd.Series(chosen[beginnings]).groupby(chunk.document[beginnings]).mean()
    others = share[trace.documents["topic"].iloc[share.index].to_numpy() != about]
    assert seen.alarms[0].threshold == pytest.approx(np.quantile(others, 0.95, method="higher"))
    assert f"of {len(others)} held-out texts" in seen.alarms[0].threshold_from


@pytest.fixture
def other_model(run: Path, tmp_path: Path) -> Iterator[Path]:
    """The planted model with one expert changed."""
    import transformers

    folder = tmp_path / "other"
    shutil.copytree(run.parent / "model", folder)
    model = transformers.OlmoeForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[0] += 0.5
    model.save_pretrained(folder)
    yield folder


def test_other_weights_are_refused_or_named(run: Path, other_model: Path) -> None:
    code, _, err = moe_probe("inspect", run, SHORT, "--model", other_model, "--no-timing")
    assert code == 1 and "other weights than the trace" in err and "--force-weights" in err
    code, out, err = moe_probe("inspect", run, SHORT, "--model", other_model, "--no-timing", "--force-weights")
    assert code == 0, err
    assert "OTHER WEIGHTS" in out and "the trace" in out and SAE in out


def test_an_sae_of_other_weights_is_refused(run: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    planted_model.save_dictionary(copy / "sae" / "layer_00/width_00025", "of another model")
    with pytest.raises(MoeProbeError, match=r"other weights than the SAE layer_00/width_00025"):
        inspect_text(copy, SHORT, model=loaded, look=replace(QUIET, saes=("layer_00/width_00025",)))
    assert inspect_text(copy, SHORT, model=loaded, look=replace(QUIET, saes=(SAE,))).notes == ()


def test_a_model_of_other_layers_cannot_be_forced(run: Path, plain: tuple[Path, LoadedModel]) -> None:
    with pytest.raises(MoeProbeError, match="other layers or numbers of experts"):
        inspect_text(run, SHORT, model=plain[1], look=replace(QUIET, force_weights=True))


def test_hostile_text_is_escaped_everywhere(run: Path, loaded: LoadedModel) -> None:
    seen = inspect_text(run, SHORT, model=loaded, look=Look(watch=(f"{SAE}:1",), threshold=0, timing=False))
    seen = replace(seen, name=EVIL, notes=(EVIL,), call=replace(seen.call, strings=(EVIL,) * len(seen.call.ids)))
    shown = terminal_text(seen, top=24)
    assert "\x1b" not in shown and "\\x1b[31mred" in shown
    coloured = terminal_text(seen, top=24, colour=True)
    assert set(re.findall(r"\x1b\[([0-9;]*)m", coloured)) <= {"0", "1", "2", "1;31"} | {
        f"30;48;5;{n}" for n in (230, 222, 214, 208)
    }
    page = render_inspections([seen])
    assert page.count("<script") == 2 and "alert(1)</script>" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page and "\\u003cscript\\u003e" in page and "{{ 7*7 }}" in page
    assert "http" not in re.sub(r"http-equiv", "", page) and "default-src 'none'" in page


def test_the_page_has_every_token_and_unit(run: Path, tmp_path: Path) -> None:
    code, out, err = moe_probe(
        "inspect", run, SHORT, OTHER, "--no-timing", "--html", tmp_path / "view.html", "--shade", "0:1"
    )
    assert code == 0 and str(tmp_path / "view.html") in out, err
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert page.count("data-i=") == len(SHORT.split()) + len(OTHER.split()) and page.count("<article data-text") == 2
    data = [json.loads(d) for d in re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)]
    unit = next(u for u in data[1]["units"] if u["key"] == "0:1")
    assert data[1]["shade"] == "0:1" and [i for i, _, _ in unit["on"]] == [
        i for i, word in enumerate(OTHER.split()) if word.startswith("m1")
    ]
    code, _, err = moe_probe("inspect", run, SHORT, "--no-timing", "--html", tmp_path / "view.html" / "below")
    assert code == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "text is empty"),
        (["  \n"], "text is empty"),
        ([], "there is nothing to inspect"),
        ([SHORT, "--sae", "layer_00/width_00042-k6"], f"did you mean '{SAE}'"),
        ([SHORT, "--watch", "layer_01/width_00024-k6:3"], f"did you mean '{SAE}'"),
        ([SHORT, "--watch", f"{SAE}:24"], f"{SAE} has 24"),
        ([SHORT, "--watch", f"{SAE}:x"], "there is no feature x"),
        ([SHORT, "--watch", "topic-33"], "did you mean 'topic-3'"),
        ([SHORT, "--watch", "topic-1"], "no unit of the run stands for"),
        ([SHORT, "--watch", "9:1"], "no MoE layer 9"),
        ([SHORT, "--watch", "0:99"], "no expert 99"),
        ([SHORT, "--shade", "topic-3"], "cannot be read"),
        ([SHORT, "--generate", 200], "do not fit"),
        (["--file", "none.txt"], "none.txt cannot be read"),
    ],
)
def test_bad_requests_are_one_sentence(run: Path, words: list[object], said: str) -> None:
    code, _, err = moe_probe("inspect", run, "--no-timing", *words)
    assert code == 2 and said in " ".join(err.split()) and "Traceback" not in err


def test_texts_come_from_files_and_stdin(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SHORT, encoding="utf-8")
    code, out, err = moe_probe(
        "inspect", run, OTHER, "--file", tmp_path / "a.txt", "--file", "-", "--no-timing", "--json", stdin="c1 c2 c3"
    )
    assert code == 0, err
    texts = json.loads(out)["texts"]
    assert [(t["name"], len(t["tokens"])) for t in texts] == [("text", 10), ("a.txt", 10), ("stdin", 3)]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_continuation_is_the_models_own(plain: tuple[Path, LoadedModel], temperature: float) -> None:
    root, loaded = plain
    ids = loaded.tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    torch.manual_seed(7)
    model: Any = loaded.model  # `generate` is typed for classes that transformers does not export
    wanted = model.generate(ids, max_new_tokens=9, **drawn)[0]
    before = torch.random.get_rng_state()
    look = Look(generate=9, temperature=temperature, timing=False, seed=7)
    seen = inspect_text(root, "w1 w2 w3", model=loaded, look=look)
    assert torch.equal(before, torch.random.get_rng_state())
    assert seen.call.ids.tolist() == wanted.tolist() and seen.call.windows == 1
    assert seen.call.generated.tolist() == [False] * 4 + [True] * (len(wanted) - 4)
    assert "▸" in terminal_text(seen) and seen.as_dict()["tokens"][4]["generated"]


def test_the_model_is_left_as_it_was(plain: tuple[Path, LoadedModel], tmp_path: Path) -> None:
    root, loaded = plain
    ids = loaded.tokenizer("w1 w2 w3 w4", return_tensors="pt")["input_ids"]

    def state() -> tuple[torch.Tensor, int]:
        with torch.no_grad():
            logits = loaded.model(ids).logits
        return logits, sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())

    before = state()
    inspect_text(root, "w5 w6 w7", model=loaded, look=Look(generate=3))
    shutil.copytree(root / "trace", tmp_path / "trace")
    save_sae(make_sae(SaeConfig(d_in=16, d_sae=8, k=2, layer=1)), tmp_path / "sae" / "layer_01" / "width_00008")
    with pytest.raises(MoeProbeError, match="takes activations of width 16"):
        inspect_text(tmp_path, "w5 w6 w7", model=loaded, look=QUIET)
    after = state()
    assert torch.equal(before[0], after[0]) and before[1] == after[1]


def test_the_overhead_is_measured_and_counted(run: Path, loaded: LoadedModel) -> None:
    seen = inspect_text(run, SHORT, model=loaded)
    cost = seen.overhead
    assert cost is not None and cost.n_tokens == 10 and cost.rounds >= 7
    assert min(cost.forward, cost.hooks, cost.encoding, cost.hooks_ratio, cost.encoding_ratio) > 0
    assert cost.encode_flops == sae_encode_flops(32, 24)
    assert cost.forward_flops == shape_of(loaded.model.config).forward_flops(10)
    assert "with hooks and encoding" in terminal_text(seen)


def test_a_threshold_is_asked_for_where_the_run_has_none(plain: tuple[Path, LoadedModel]) -> None:
    with pytest.raises(UsageError, match="needs a threshold"):
        inspect_text(plain[0], "w1 w2", model=plain[1], look=Look(watch=("0:1",), timing=False))


def test_without_kept_activations_the_routing_is_still_held_against_documents(
    run: Path,
    loaded: LoadedModel,
    tmp_path: Path,
) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "trace")
    corpus = Corpus(str(run.parent / "corpus.jsonl"))
    collect_trace(loaded, corpus, tmp_path / "run" / "trace", progress=False)
    by_experts, by_features = inspect_text(tmp_path / "run", SHORT, model=loaded, look=QUIET).guesses
    assert by_experts.accuracy is not None and by_features.accuracy is None
    with pytest.raises(UsageError, match="needs a threshold"):
        inspect_text(tmp_path / "run", SHORT, model=loaded, look=Look(watch=("topic-3",), timing=False))


def test_counts_alone_still_show_the_text(plain: tuple[Path, LoadedModel], tmp_path: Path) -> None:
    _, loaded = plain
    collect_trace(
        loaded,
        Corpus(str(write_corpus(tmp_path / "c.jsonl", documents=9))),
        tmp_path / "run" / "trace",
        progress=False,
        options=CollectOptions(keep=("usage",)),
    )
    seen = Inspector(RunDirectory.open(tmp_path / "run"), loaded, look=QUIET)("w1 w2 w3")
    assert len(seen.experts) and not seen.features and not seen.guesses
    assert any("counts per document only" in note for note in seen.notes)
    assert "layer" in terminal_text(seen) and render_inspections([seen])
