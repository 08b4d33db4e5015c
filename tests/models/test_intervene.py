"""Knocking experts out: right for every family, and gone without a trace afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from moe_probe.core.errors import MoeProbeError
from moe_probe.features.spliced_loss import LossSample, first_losses, losses
from moe_probe.models import ADAPTERS, LoadedModel, MoeSite, RoutingCapture, find_moe_layers, forward_inputs
from moe_probe.models.intervene import Intervention, intervened, mean_outputs
from moe_probe.models.prefix import PrefixCache
from moe_probe.testing import moe_families, tiny_moe

#: Choose by a hash of the token or by products of keys: there are no logits of experts to mask.
WITHOUT_LOGITS = {"doge"}


def built(family: str):
    model = tiny_moe(family)
    sites = find_moe_layers(model)
    inputs = forward_inputs(model, torch.arange(3, 27).reshape(2, 12))
    return model, sites, inputs


def stand_in(model: torch.nn.Module, sites: Sequence[MoeSite]) -> LoadedModel:
    """A loaded model as far as losses read it: without tokenizer and facts."""
    return cast(LoadedModel, SimpleNamespace(model=model, sites=sites))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules())


@pytest.mark.parametrize("family", sorted(moe_families()))
def test_every_family(family: str) -> None:
    """Zeroing takes exactly the expert's share out of the sum; masking leaves it unchosen; all is as before afterwards."""
    model, sites, inputs = built(family)
    site = sites[-1]
    before, n_hooks = state(model), hooks(model)
    with torch.no_grad(), RoutingCapture(model, [site], keep=("expert_outputs",)) as capture:
        plain = model(**inputs)[0]
        seen = capture.take()[0]
    assert seen.expert_outputs is not None and seen.weights is not None
    expert = int(seen.experts[seen.experts >= 0].mode().values)
    share = (seen.expert_outputs * (seen.experts == expert)[..., None]).sum(1)
    totals: list[torch.Tensor] = []

    def watched(how: Intervention) -> torch.Tensor:
        totals.clear()
        with torch.no_grad(), intervened(site, how):
            handles = ADAPTERS[site.adapter].watch_total(site, lambda x: totals.append(x.clone()))
            try:
                model(**inputs)
            finally:
                for handle in handles:
                    handle.remove()
        return totals[-1]

    whole = watched(Intervention((expert,), "steer", 0.0)) if family not in WITHOUT_LOGITS else seen.expert_outputs.sum(1)
    assert torch.allclose(watched(Intervention((expert,), "zero")), whole - share, atol=1e-4, rtol=1e-3)
    with torch.no_grad(), mean_outputs(site) as collected:
        model(**inputs)
        means = collected()
    weight = (seen.weights * (seen.experts == expert)).sum(1, keepdim=True)
    assert torch.allclose(
        watched(Intervention((expert,), "mean", means=means)), whole - share + weight * means[expert], atol=1e-4, rtol=1e-3
    )
    if family in WITHOUT_LOGITS:
        with pytest.raises(MoeProbeError, match="zero or mean"):
            watched(Intervention((expert,), "mask"))
    else:
        try:
            with (
                torch.no_grad(),
                intervened(site, Intervention((expert,), "mask")),
                RoutingCapture(model, [site]) as capture,
            ):
                out = model(**inputs)[0]
                masked = capture.take()[0]
        except MoeProbeError as error:  # chosen by a hash of the token, whatever the logits say
            assert "does not follow its logits" in str(error)
            assert family in {"deepseek_v4"}
        else:
            assert not (masked.experts == expert).any()
            assert torch.isfinite(out.float()).all()
    assert hooks(model) == n_hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], plain)


@pytest.mark.parametrize("how", ["mask", "zero", "mean", "steer"])
def test_nothing_is_left_behind_by_an_exception(how: str) -> None:
    """An error of whoever runs the model, or of the model itself, inside the block."""
    model, sites, inputs = built("olmoe")
    site = sites[-1]
    before, n_hooks = state(model), hooks(model)
    with torch.no_grad():
        plain = model(**inputs)[0]
    means = torch.ones(site.info.num_experts, model.config.hidden_size)
    change = Intervention((0, 1), how, 50.0, means if how == "mean" else None)
    changed = []

    def run_and_fail() -> None:
        with torch.no_grad(), intervened(site, change):
            changed.append(model(**inputs)[0])
            model(input_ids=torch.full((1, 2), 10**6))

    with pytest.raises(IndexError):
        run_and_fail()
    assert not torch.equal(changed[0], plain), "the change was on"
    assert hooks(model) == n_hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], plain)


def test_steering_raises_the_choice_of_an_expert() -> None:
    model, sites, inputs = built("olmoe")
    shares = []
    for boost in (-100.0, 0.0, 1.0, 100.0):
        change = Intervention((3,), "steer", boost)
        with torch.no_grad(), intervened(sites[-1], change), RoutingCapture(model, [sites[-1]]) as seen:
            model(**inputs)
            shares.append(float((seen.take()[0].experts == 3).any(1).float().mean()))
    assert shares[0] == 0 and shares[-1] == 1
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    "family",
    [
        "olmoe",
        "gpt_oss",
        "deepseek_v4",
        "llama4",
        "longcat_flash",
        "exaone_moe",
        "jamba",
        "nllb_moe",
        "openai_privacy_filter",
        "gemma4",
    ],
)
def test_short_cuts_give_the_same_losses(family: str) -> None:
    """Layers below run once, and only changed tokens predicted: the very losses of whole passes, or no short cut."""
    model, sites, _ = built(family)
    loaded = stand_in(model, sites)
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(3, 27, n) for n in (12, 12, 9))
    sample = LossSample(ids, tuple(np.zeros(len(i), dtype=bool) for i in ids), (0, 1, 2))
    plain, suffix = first_losses(loaded, sample)
    assert np.array_equal(plain, losses(loaded, sample))
    n_hooks = hooks(model)
    cache: PrefixCache | None = PrefixCache(model, sites[-1])
    assert cache is not None
    passes = [losses(loaded, sample, prefix=cache, suffix=suffix) for _ in range(3 if cache.below else 0)]
    cache = cache if passes and all(np.array_equal(p, plain) for p in passes) else None
    if family in ("olmoe", "gpt_oss", "jamba"):
        assert cache is not None and suffix is not None, "these families allow both"
    with intervened(sites[-1], Intervention((0, 1, 2), "zero")):
        whole = losses(loaded, sample)
        short = losses(loaded, sample, prefix=cache, suffix=suffix)
    assert np.allclose(short, whole, rtol=0, atol=1e-6)
    assert np.abs(whole - plain).max() > 1e-6
    assert hooks(model) == n_hooks


def test_a_model_without_predictions_is_refused() -> None:
    model, sites, _ = built("deepseek_ocr2")
    ids = (np.arange(3, 12),)
    with pytest.raises(MoeProbeError, match="predicts no tokens"):
        losses(stand_in(model, sites), LossSample(ids, (np.zeros(9, dtype=bool),), (0,)))
