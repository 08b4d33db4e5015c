"""Names of activation sites: one table for `--keep`, captures, folders of a trace and SAE configurations."""

from __future__ import annotations

import pytest

from moe_probe.core.errors import UsageError
from moe_probe.core.sites import HOOKS, KEEPABLE, ActivationSite
from moe_probe.models import SiteRecord


def test_names_on_disk_and_in_options_stay() -> None:
    assert KEEPABLE == ("routing", "usage", "logits", "hidden", "residual", "expert_output_norms", "expert_outputs")
    assert [str(site) for site in HOOKS] == ["router_input", "expert_output", "residual"]
    assert [(site.folder_of(7), site.tensor_of(7), site.sampled) for site in ActivationSite] == [
        ("logits", "layer_07", False),
        ("hidden/layer_07", "values", True),
        ("residual/layer_07", "values", True),
        ("expert_output/layer_07", "norms", False),
        ("expert_output/layer_07", "values", True),
    ]


def test_every_site_is_a_field_of_what_is_captured() -> None:
    assert {site.part for site in ActivationSite} == set(SiteRecord._fields) - {"experts", "weights"}


def test_unknown_hook() -> None:
    assert ActivationSite.of_hook("residual") is ActivationSite.RESIDUAL
    for hook in ("logits", "hidden"):  # kept in traces, but no hook of an SAE is called so
        with pytest.raises(UsageError, match=f"unknown activation site '{hook}'.*router_input"):
            ActivationSite.of_hook(hook)
