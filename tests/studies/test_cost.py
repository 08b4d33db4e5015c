"""Counts agree with torch's own counter; projections with cases worked by hand and with published ratios."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support.split_run import WIDTHS, K
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import UsageError
from moe_probe.core.flops import sae_encode_flops, sae_train_flops, shape_of, training_flops
from moe_probe.core.publication import STAGED
from moe_probe.models import load_model
from moe_probe.recording.trace import Trace
from moe_probe.sae import SaeConfig, TrainOptions, make_sae, train_saes
from moe_probe.studies.cost import PRESETS, SaePlan, break_even_nodes, growth, project

SHIPPED = Path(__file__).parents[2] / "data" / "model" / "final"


@pytest.mark.parametrize("length", [64, 512])
def test_forward_agrees_with_torch(length: int) -> None:
    loaded = load_model(SHIPPED, dtype="float32", experts_implementation="eager", progress=False)
    loaded.model.set_attn_implementation("eager")  # torch's counter knows no fused attention of CPUs
    ids = torch.randint(0, 4096, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loaded.model(ids)
    counted = counter.get_total_flops() / ids.numel()
    assert shape_of(loaded.model.config).forward_flops(length) == pytest.approx(counted, rel=0.02)


def test_encoding_agrees_with_torch() -> None:
    sae = make_sae(SaeConfig(architecture="topk", d_in=64, d_sae=512, k=8, hook="router_input", layer=0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        sae.encode(torch.randn(256, 64))
    assert counter.get_total_flops() / 256 == pytest.approx(sae_encode_flops(64, 512), rel=0.02)


def test_training_agrees_with_torch() -> None:
    """The dense products of this package's trainer, and those of an SAE that is trained densely; gathers are counted by hand."""
    d, width, k, size, steps = 64, 512, 8, 256, 12
    generator = torch.Generator().manual_seed(0)
    batches = (torch.randn(size, d, generator=generator) for _ in range(3 * steps))
    with FlopCounterMode(display=False) as counter:
        train_saes(
            batches,
            [SaeConfig(architecture="topk", d_in=d, d_sae=width, k=k)],
            options=TrainOptions(steps=steps, sample=size, device="cpu"),
        )
    by_hand = sae_train_flops(d, width, k, batch_tokens=size) - 8 * d * k - 12 * 2 * d * width / size
    assert counter.get_total_flops() / (steps * size) == pytest.approx(by_hand, rel=0.02)
    down, up, offset = (torch.randn(shape, requires_grad=True) for shape in ((width, d), (d, width), (d,)))
    x = torch.randn(size, d)
    with FlopCounterMode(display=False) as counter:
        ((torch.relu((x - offset) @ up) @ down + offset - x) ** 2).sum().backward()
    assert counter.get_total_flops() / size == pytest.approx(sae_train_flops(d, width, k, dense=True), rel=0.02)


def test_an_olmoe_like_case_worked_by_hand() -> None:
    """N 3.9e22; 500 M tokens, width 32,768, d 2,048: SAE 4.0e17 dense, 6.8e16 over active latents, capture 1.3e18, 2 TB."""
    olmoe = PRESETS["olmoe-1b-7b"]
    found = project(olmoe.active, 2048, tokens=olmoe.tokens, saes=SaePlan(width=32_768, active_latents=32, tokens=5e8))
    assert found.training == pytest.approx(3.9e22, rel=0.01)
    assert found.sae == pytest.approx(6.8e16, rel=0.02)
    assert found.capture == pytest.approx(1.3e18, rel=0.02)
    assert found.activation_bytes == pytest.approx(2e12, rel=0.03)
    dense = project(olmoe.active, 2048, tokens=olmoe.tokens, saes=SaePlan(width=32_768, tokens=5e8, dense=True))
    assert dense.sae == pytest.approx(4.0e17, rel=0.01)
    assert dense.fractions()["sae"] == pytest.approx(1e-5, rel=0.05)
    assert dense.capture / dense.sae == pytest.approx(3, rel=0.1)


def test_gemma_scope_in_units_of_both_models() -> None:
    """A fifth of GPT-3's training is 14 % of Gemma 2 9B's, which agrees with the 15 % that was reported."""
    gpt, gemma = PRESETS["gpt-3"], PRESETS["gemma-2-9b"]
    fifth = 0.2 * training_flops(gpt.active, gpt.tokens or math.nan)
    assert fifth / training_flops(gemma.active, gemma.tokens or math.nan) == pytest.approx(0.14, abs=0.005)


def test_labelling_by_a_language_model_costs_more_than_the_sae() -> None:
    found = project(1.28e9, 2048, tokens=5.1e12, saes=SaePlan(width=32_768, tokens=5e8, dense=True))
    assert found.labelling == pytest.approx(2 * 70e9 * 32_768 * (993 + 5 * 790))
    assert found.labelling > 30 * found.sae


def test_small_numbers_by_hand() -> None:
    assert sae_train_flops(2, 10, 3, dense=True) == 240
    assert sae_train_flops(2, 10, 3, batch_tokens=24) == 2 * 20 + 8 * 2 * 3 + 12 * 2 * 20 / 24
    plan = SaePlan(layers=3, width=8, active_latents=2, tokens=10, dense=True, labelled=2, labeller=1)
    found = project(100, 4, tokens=50, saes=plan)
    assert (found.training, found.capture, found.sae) == (30_000, 2_000, 3 * 10 * 12 * 4 * 8)
    assert found.per_token_encode == 3 * 2 * 4 * 8
    assert found.once == found.capture + found.sae + found.labelling


def test_is_it_a_linear_tax() -> None:
    """At every layer with width as d_model the cost of SAEs grows as d^3 and that of training as d^6."""
    slope = growth().groupby("rule")["exponent"].first()
    assert slope["width as d_model"] == pytest.approx(0.5, abs=0.02)
    assert slope["width fixed"] == pytest.approx(1 / 3, abs=0.02)
    assert slope["width as parameters"] == pytest.approx(5 / 6, abs=0.02)


def test_depth_first_breaks_even_where_it_should() -> None:
    nodes = break_even_nodes(0.01, wide=65_536, root=4_096, small=256)
    depth_first = sae_encode_flops(7, 4_096) + round(nodes) * 0.01 * sae_encode_flops(7, 256)
    assert depth_first == pytest.approx(sae_encode_flops(7, 65_536), rel=1e-3)


def test_unknown_training_is_not_guessed_and_sizes_are_checked() -> None:
    found = project(12.9e9, 4096, tokens=PRESETS["mixtral-8x7b"].tokens)
    assert math.isnan(found.training) and math.isnan(found.fractions()["sae"])
    with pytest.raises(UsageError, match="width"):
        project(1e9, 64, tokens=1e12, saes=SaePlan(width=0))


def test_a_run_is_counted_step_by_step(split_run_copy: Path) -> None:
    run = split_run_copy
    words = ["cost", str(run), "--train-tokens", "1e6", "--json", "--quiet"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["run"]
    (run / "results" / STAGED).mkdir()
    (run / "results" / STAGED / "layers.parquet").write_bytes(b"of an interrupted command")
    assert json.loads(CliRunner().invoke(app, words).stdout)["run"] == found  # its own tables are not counted either
    assert not (run / "results" / STAGED).exists()
    steps = {s["step"]: s for s in found["steps"]}
    tokens, model = steps["collect"]["tokens"], found["model"]
    assert steps["collect"]["flops"] == pytest.approx(tokens * model["forward_flops_no_logits"])
    lengths = Trace.open(run).documents["n_tokens"].clip(upper=32)
    assert model["window"] == 32 and lengths.min() <= model["window_collected"] <= 32
    assert found["training_flops"] == pytest.approx(3e6 * model["forward_flops"])
    assert steps["collect"]["of_training"] == pytest.approx(steps["collect"]["flops"] / found["training_flops"])
    each = [sae_train_flops(32, width, K) for width in WIDTHS]  # both saw the same tokens
    assert steps["train SAEs"]["flops"] == pytest.approx(steps["train SAEs"]["tokens"] * sum(each) / 2)
    assert steps["encode an output"]["paid"] == "every output" and steps["encode an output"]["of_training"] is None
    assert steps["match"]["flops"] == tokens * 3 * 2 * (K + K)
    assert all(steps[name]["seconds"] > 0 for name in ("collect", "analyze", "train SAEs", "match"))
    assert json.loads((run / "results" / "cost.json").read_text())["steps"] == found["steps"]


def test_projections_on_the_command_line() -> None:
    done = CliRunner().invoke(app, ["cost", "--preset", "olmoe-1b-7b", "--json", "--quiet"])
    assert json.loads(done.stdout)["projection"]["fractions"]["capture"] == pytest.approx(2 * 5e8 / (6 * 5.1e12))
    words = ["--params", "1.8e12", "--active", "2.8e11", "--tokens", "13e12", "--d-model", "16384"]
    done = CliRunner().invoke(app, ["cost", *words])
    assert done.exit_code == 0 and "of training" in done.stdout
    done = CliRunner().invoke(app, ["cost", "--preset", "mixtral-8x7b"])
    assert done.exit_code == 0 and "not published" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to count"),
        (["--preset", "olmo"], "is not known"),
        (["--params", "1e9"], "--d-model"),
        (
            ["--params", "1e9", "--d-model", "64", "--sae-tokens", "-1"],
            "--sae-tokens -1.0 is invalid: Input should be greater than 0",
        ),
    ],
)
def test_bad_requests_get_a_sentence(words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["cost", *words])
    assert done.exit_code == 2
    assert says in done.stderr.replace("\n", " ")
