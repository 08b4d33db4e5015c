"""Knocking experts out: right for every family, and gone without a trace afterwards."""

from __future__ import annotations

import pytest
import torch

from moe_probe.errors import MoeProbeError
from moe_probe.models import ADAPTERS, RoutingCapture, find_moe_layers, forward_inputs
from moe_probe.models.intervene import Intervention, intervened
from moe_probe.testing import moe_families, tiny_moe

#: Choose by a hash of the token or by products of keys: there are no logits of experts to mask.
WITHOUT_LOGITS = {"doge"}


def built(family: str):
    model = tiny_moe(family)
    sites = find_moe_layers(model)
    inputs = forward_inputs(model, torch.arange(3, 27).reshape(2, 12))
    return model, sites, inputs


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
    if family in WITHOUT_LOGITS:
        with pytest.raises(MoeProbeError, match="zero or mean"):
            watched(Intervention((expert,), "mask"))
    else:
        try:
            with torch.no_grad(), intervened(site, Intervention((expert,), "mask")), RoutingCapture(model, [site]) as capture:
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
