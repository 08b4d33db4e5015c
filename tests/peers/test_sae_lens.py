"""SAELens reads the SAE folders written here and writes folders that are read here. Run by ``make test-peers``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from moe_probe.sae import SaeConfig, load_sae, make_sae, save_sae
from moe_probe.sae.architectures.batchtopk import BatchTopK

D_IN, D_SAE, K = 16, 48, 3


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "standard"])
def test_sae_lens_reads_what_is_written(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = make_sae(SaeConfig(architecture=architecture, d_in=D_IN, d_sae=D_SAE, k=K)).eval()
    x = torch.randn(64, D_IN)
    with torch.no_grad():
        for name in ("b_enc", "b_dec"):
            getattr(sae, name).copy_(0.1 * torch.randn_like(getattr(sae, name)))
        if isinstance(sae, BatchTopK):
            sae.fix_threshold(x)
        theirs = SAE.load_from_disk(str(save_sae(sae, tmp_path / "ours")))
        assert torch.allclose(theirs(x), load_sae(tmp_path / "ours")(x), atol=1e-5, rtol=1e-5)
        theirs.save_model(str(tmp_path / "theirs"))
        assert torch.allclose(load_sae(tmp_path / "theirs")(x), theirs(x), atol=1e-5, rtol=1e-5)
