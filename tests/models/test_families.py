"""Every mixture-of-experts family of the installed transformers: watched, unchanged, and explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from moe_probe.models import ADAPTERS, Observation, find_moe_layers, forward_inputs, self_check
from moe_probe.testing import moe_families, tiny_moe

#: Families that cannot be captured, with the reason. A family that begins to work fails the test.
UNSUPPORTED: dict[str, str] = {}

DOC = Path(__file__).parents[2] / "docs" / "families.md"
FAMILIES = [
    pytest.param(name, marks=pytest.mark.xfail(reason=UNSUPPORTED[name], strict=True)) if name in UNSUPPORTED else name
    for name in moe_families()
]


class Run(NamedTuple):
    """A tiny model, what its sites showed in one forward, and the mixtures it computed itself."""

    model: Any
    sites: list[Any]
    seen: list[Any]
    totals: list[torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(4, 96, (rows, length), generator=torch.Generator().manual_seed(5))


def watched(family: str) -> Run:
    """Run a family once with its adapters attached by hand."""
    model = tiny_moe(family)
    sites = find_moe_layers(model)
    seen: dict[int, Observation] = {}
    totals: dict[int, torch.Tensor] = {}
    handles = []
    for i, site in enumerate(sites):
        adapter: Any = ADAPTERS[site.adapter]

        def sink(observed: Observation, i: int = i) -> None:
            copies: list[Any] = [None if x is None else x.clone() for x in observed]
            seen[i] = Observation(*copies)

        def total(y: torch.Tensor, i: int = i) -> None:
            totals[i] = y.clone()

        handles += [*adapter.attach(site, sink, router=True), *adapter.watch_total(site, total)]
    with torch.no_grad():
        model(**forward_inputs(model, tokens(), logits=False))  # as collecting runs it
    for handle in handles:
        handle.remove()
    order = range(len(sites))
    return Run(model, sites, [seen[i] for i in order], [totals[i] for i in order])


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_watched_unchanged_and_explained(family: str) -> None:
    model = tiny_moe(family)
    report = self_check(model, find_moe_layers(model), input_ids=tokens())
    report.raise_if_failed()
    assert report.outputs_unchanged
    assert max(site.relative_error for site in report.sites) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_wrong_ids_do_not_explain(family: str) -> None:
    run = watched(family)
    for site, seen, total in zip(run.sites, run.seen, run.totals, strict=True):
        adapter: Any = ADAPTERS[site.adapter]
        assert error(adapter.contributions(site, seen).sum(1), total) < 1e-4
        wrong = seen._replace(experts=(seen.experts + site.info.num_experts // 2) % site.info.num_experts)
        if site.adapter == "nllb" and not adapter.runs_the_choice(site.experts):
            # Which experts run does not depend on the ids there: take the gates of other tokens instead.
            wrong = seen._replace(weights=seen.weights.roll(1, dims=0))
        assert error(adapter.contributions(site, wrong).sum(1), total) > 0.1
        assert seen.experts.shape == seen.weights.shape == (tokens().numel(), site.info.top_k)
        assert seen.logits is not None
        assert seen.router_input is not None


def test_biased_selection_is_not_the_top_of_the_logits() -> None:
    model = tiny_moe("deepseek_v3")
    report = self_check(model, find_moe_layers(model), input_ids=tokens())
    assert max(site.top_logits_share for site in report.sites) < 0.5


# The five exceptions, once more from their weights alone.


@torch.no_grad()
def test_switch_from_its_weights() -> None:
    run = watched("switch_transformers")
    dropped = 0
    for site, seen, total in zip(run.sites, run.seen, run.totals, strict=True):
        probability, choice = seen.logits.softmax(-1).max(-1)
        reached = seen.weights[:, 0] > 0
        dropped += int((~reached).sum())
        assert torch.equal(seen.experts[reached, 0].long(), choice[reached])
        assert torch.allclose(seen.weights[reached, 0], probability[reached])
        expected = torch.zeros_like(total)
        for t in reached.nonzero().flatten().tolist():
            expected[t] = site.experts[f"expert_{choice[t]}"](seen.expert_input[t]) * probability[t]
        assert error(expected, total) < 1e-4
    assert dropped > 0  # the tiny model's capacity is small on purpose


@torch.no_grad()
def test_nllb_from_its_weights() -> None:
    run = watched("nllb_moe")
    for site, seen, total in zip(run.sites, run.seen, run.totals, strict=True):
        choice = seen.logits.topk(2, dim=-1).indices
        reached = seen.weights > 0
        assert torch.equal(seen.experts[reached], choice[reached])
        assert not reached.all()
        nllb: Any = ADAPTERS["nllb"]
        runs_the_choice = nllb.runs_the_choice(site.experts)
        assert runs_the_choice == ("whatever the router chose" not in site.info.note)
        expected = torch.zeros_like(total)
        for t, slot in reached.nonzero().tolist():
            ran = int(choice[t, slot]) if runs_the_choice else 1 - slot
            y = site.experts[f"expert_{ran}"](seen.expert_input[t])
            expected[t] += y * seen.weights[t, slot] * (1 - site.experts.moe_token_dropout)
        assert error(expected, total) < 1e-4


@torch.no_grad()
def test_llama4_from_its_weights() -> None:
    run = watched("llama4")
    for site, seen, total in zip(run.sites, run.seen, run.totals, strict=True):
        top = seen.logits.topk(site.info.top_k, dim=-1)
        assert torch.equal(seen.experts, top.indices)
        assert torch.allclose(seen.weights, top.values.sigmoid())
        expected = torch.zeros_like(total)
        for t in range(len(total)):
            for e, w in zip(top.indices[t], top.values[t].sigmoid(), strict=True):
                gate, up = (seen.expert_input[t] * w @ site.experts.gate_up_proj[e]).chunk(2)
                expected[t] += up * site.experts.act_fn(gate) @ site.experts.down_proj[e]
        assert error(expected, total) < 1e-4


@torch.no_grad()
def test_jetmoe_from_its_weights() -> None:
    run = watched("jetmoe")
    assert {site.adapter for site in run.sites} == {"sorted", "sorted-attention"}
    for site, seen, total in zip(run.sites, run.seen, run.totals, strict=True):
        top = seen.logits.topk(site.info.top_k, dim=-1)
        assert torch.equal(seen.experts, top.indices)
        assert torch.allclose(seen.weights, top.values.softmax(-1))
        expected = torch.zeros_like(total)
        for t in range(len(total)):
            for slot, (e, w) in enumerate(zip(seen.experts[t], seen.weights[t], strict=True)):
                if site.adapter == "sorted":
                    gate, up = (site.block.input_linear.weight[e] @ seen.expert_input[t]).chunk(2)
                    y = site.block.output_linear.weight[e] @ (site.block.activation(gate) * up)
                else:
                    y = site.experts.output_linear.weight[e] @ seen.expert_input[t, slot]
                expected[t] += w * y
        assert error(expected, total) < 1e-4


@torch.no_grad()
def test_doge_from_its_weights() -> None:
    run = watched("doge")
    for site, seen, total in zip(run.sites, run.seen, run.totals, strict=True):
        block: Any = site.block
        first, second = seen.logits.chunk(2, dim=-1)
        scores = (first[:, :, None] + second[:, None, :]).flatten(1)  # every expert, not only the best keys
        top = scores.topk(site.info.top_k, dim=-1)
        assert torch.equal(seen.experts.sort(-1).values, top.indices.sort(-1).values)
        chosen = scores.gather(1, seen.experts)
        assert torch.allclose(seen.weights, chosen.softmax(-1), atol=1e-6)
        expected = torch.zeros_like(total)
        for t in range(len(total)):
            for e, w in zip(seen.experts[t], seen.weights[t], strict=True):
                inner = block.down_embed.weight[e] @ seen.expert_input[t]
                expected[t] += block.act_fn(inner) * w * block.up_embed.weight[e]
        assert error(expected, total) < 1e-4


# The written table.


def test_documented_families_are_those_installed() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*$", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(moe_families()), "run scripts/family_table.py"
    assert len(rows) == len(set(rows))


def test_walk_leaves_out_what_has_no_text() -> None:
    assert "vitpose_backbone" not in moe_families()
    assert {"olmoe", "mixtral", "gpt_oss", "doge", "jetmoe"} <= set(moe_families())
    assert all(family.experts_classes for family in moe_families().values())
