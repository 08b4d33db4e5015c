"""Sparse autoencoders: planted dictionaries are recovered, gradients are exact, bad activations are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import TypedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae import ARCHITECTURES, Sae, SaeConfig, TrainOptions, make_sae, train_saes
from moe_probe.sae.architectures.ops import decode, encode_chosen, filled, sum_rows
from moe_probe.sae.formats.io import load_sae, save_sae
from moe_probe.sae.training.steps import Training


class Settings(TypedDict, total=False):
    """Fields of `SaeConfig` that only some architectures have."""

    nested: tuple[int, ...]
    sparsity: float


D, M, N, ACTIVE = 32, 48, 1024, 3
SETTINGS: dict[str, Settings] = {
    "topk": {},
    "batchtopk": {},
    "matryoshka": {"nested": (24, 48)},
    "standard": {"sparsity": 0.08},
    "jumprelu": {"sparsity": 0.02},
}


def truth(seed: int = 0) -> Tensor:
    rows = torch.randn(M, D, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def activations(seed: int, n: int = N) -> Tensor:
    """Sums of about three of 48 unit directions, with a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, M, generator=generator) < ACTIVE / M
    return (on * (0.5 + torch.rand(n, M, generator=generator))) @ truth() * 7 + 0.3


def stream(seed: int = 1) -> Iterator[Tensor]:
    return (activations(seed * 10_000 + i) for i in range(10_000))


def trained(architecture: str) -> Sae:
    config = SaeConfig(architecture=architecture, d_in=D, d_sae=M, k=ACTIVE, **SETTINGS[architecture])
    return train_saes(stream(), [config], options=TrainOptions(steps=500, dead_after=20_000))[0]


@pytest.fixture(scope="module")
def all_trained():
    return {name: trained(name) for name in ARCHITECTURES}


@pytest.mark.parametrize("architecture", list(SETTINGS))
def test_a_known_dictionary_is_recovered(architecture: str, all_trained) -> None:
    """Mean over true features of the largest cosine at least 0.95, at three of 48 active."""
    sae = all_trained[architecture]
    rows = sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True)
    assert float((truth() @ rows.T).max(1).values.mean()) >= 0.95
    x = activations(3)
    with torch.no_grad():
        fvu = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert float(fvu) < 0.2


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_threshold_keeps_l0_on_unseen_tokens(architecture: str, all_trained) -> None:
    sae = all_trained[architecture]
    assert sae.fix_threshold(activations(5, 4096)) == pytest.approx(ACTIVE, rel=0.01)
    active = (sae.encode(activations(6, 4096)).values > 0).sum(1).float().mean()
    assert float(active) == pytest.approx(ACTIVE, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
def test_sparse_gradients_equal_dense_ones(n: int, m: int, k: int, seed: int, sparse: bool) -> None:
    k = min(k, m)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, goal = draw(n, 5), draw(n, 5)
    parameters = [draw(m, 5), draw(m), draw(m, 5)]
    fast = [p.clone().requires_grad_() for p in parameters]
    dense = [p.clone().requires_grad_() for p in parameters]
    pre = x @ dense[0].T + dense[1]
    values, indices = pre.topk(k, dim=1)
    full = torch.zeros_like(pre).scatter(1, indices, values.relu())
    (goal - full @ dense[2]).square().sum().backward()
    kept = filled(values.relu()) if sparse else None
    chosen = encode_chosen(x, (fast[0], fast[1]), values.detach(), indices, kept=kept)
    (goal - decode(chosen.relu(), indices, fast[2], kept=kept)).square().sum().backward()
    for a, b in zip(fast, dense, strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-10)


def test_sums_by_latent_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 6, (7, 3), generator=generator)
    weights, rows = torch.randn(7, 3, generator=generator), torch.randn(7, 4, generator=generator)
    by_hand = torch.zeros(8, 4)
    for i in range(7):
        for j in range(3):
            by_hand[indices[i, j]] += weights[i, j] * rows[i]
    assert torch.allclose(
        sum_rows(weights.flatten(), indices.flatten(), torch.arange(7).repeat_interleave(3), rows, n_latents=8),
        by_hand,
        atol=1e-6,
    )


def test_one_seed_one_result_and_several_in_one_pass() -> None:
    """Trained together or alone, an SAE comes out the same; another seed gives another."""
    options = TrainOptions(steps=20)
    configs = [SaeConfig(d_in=D, d_sae=width, k=3) for width in (32, 64)]
    together = train_saes(stream(), configs, options=options)
    alone = train_saes(stream(), configs[1:], options=options)[0]
    assert torch.equal(together[1].W_dec, alone.W_dec)
    other = train_saes(stream(), [configs[1].model_copy(update={"seed": 1})], options=options)[0]
    assert not torch.equal(other.W_dec, alone.W_dec)


def test_decoder_rows_have_unit_norm(all_trained) -> None:
    for sae in all_trained.values():
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-4)


def test_dead_latents_are_brought_back() -> None:
    """Latents pushed out of reach fire again with the auxiliary loss, and do not without."""

    def live(aux: float) -> int:
        config = SaeConfig(d_in=D, d_sae=M, k=ACTIVE)
        options = TrainOptions(steps=300, aux=aux, dead_after=5_000)
        made = Training.start(config, activations(0), options, steps=300, tokens=10**9)
        with torch.no_grad():
            made.sae.b_enc[: M // 2] = -0.6
        for batch in (activations(i) for i in range(300)):
            made.step(batch)
        made.sae.eval()
        latents = made.sae.encode(activations(999, 4096))
        return len(latents.indices[latents.values > 0].unique())

    without, with_it = live(0.0), live(1.0)
    assert without <= M // 2 + 4
    assert with_it >= without + 8


@pytest.mark.parametrize("architecture", list(SETTINGS))
def test_saved_and_loaded_is_the_same(architecture: str, all_trained, tmp_path: Path) -> None:
    sae, x = all_trained[architecture].eval(), activations(4, 256)
    folder = save_sae(sae, tmp_path / "sae")
    again = load_sae(folder, d_in=D)
    with torch.no_grad():
        assert torch.allclose(again(x), sae(x), atol=1e-3, rtol=1e-4)
    kept = json.loads((folder / "cfg.json").read_text())
    assert kept["metadata"]["moe_probe"]["architecture"] == architecture


def test_sparsify_and_dictionary_learning_folders(all_trained, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    sae, x = load_sae(save_sae(all_trained["topk"], tmp_path / "ours")), activations(4, 64)
    folder = tmp_path / "sparsify"
    folder.mkdir()
    save_file(
        {
            "encoder.weight": sae.W_enc.detach().clone(),
            "encoder.bias": sae.b_enc.detach().clone(),
            "W_dec": sae.W_dec.detach().clone(),
            "b_dec": sae.b_dec.detach().clone(),
        },
        folder / "sae.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps({"k": ACTIVE, "d_in": D, "num_latents": M}))
    with torch.no_grad():
        assert torch.allclose(load_sae(folder)(x), sae(x), atol=1e-4)
    folder = tmp_path / "dictionary"
    folder.mkdir()
    torch.save(
        {
            "encoder.weight": sae.W_enc.detach(),
            "encoder.bias": sae.b_enc.detach(),
            "decoder.weight": sae.W_dec.detach().T.contiguous(),
            "b_dec": sae.b_dec.detach(),
            "k": torch.tensor(ACTIVE),
            "threshold": torch.tensor(0.4),
        },
        folder / "ae.pt",
    )
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": ACTIVE}}))
    with torch.no_grad():
        assert torch.allclose(load_sae(folder)(x), sae(x), atol=1e-4)


@pytest.mark.parametrize("kind", ["JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_with_thresholds(kind: str, tmp_path: Path) -> None:
    """Held against the formulas of that library, written out."""
    generator = torch.Generator().manual_seed(0)
    w_enc, w_dec = torch.randn(D, M, generator=generator), torch.randn(M, D, generator=generator)
    b_enc, b_dec = torch.randn(M, generator=generator), torch.randn(D, generator=generator)
    threshold = torch.rand(M, generator=generator) * 4 if kind == "JumpReluAutoEncoder" else torch.tensor(2.0)
    torch.save({"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, "k": ACTIVE}}))
    x = torch.randn(50, D, generator=generator)
    pre = (x if kind == "JumpReluAutoEncoder" else x - b_dec) @ w_enc + b_enc
    expected = (pre.relu() * (pre > threshold)) @ w_dec + b_dec
    with torch.no_grad():
        assert torch.allclose(load_sae(tmp_path)(x), expected, atol=1e-3, rtol=1e-4)


def test_half_precision_of_the_encoder_learns_the_same_dictionary() -> None:
    config = SaeConfig(d_in=D, d_sae=M, k=ACTIVE)
    sae = train_saes(stream(), [config], options=TrainOptions(steps=600, precision="bfloat16"))[0]
    assert sae.W_enc.dtype == torch.float32 and not sae.low_precision
    assert (truth() @ sae.W_dec.detach().T).max(1).values.mean() > 0.9


class _Trap:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickles_and_strangers_are_refused(tmp_path: Path, capsys, all_trained) -> None:
    folder = tmp_path / "trap"
    folder.mkdir()
    torch.save({"encoder.weight": _Trap()}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    with pytest.raises(MoeProbeError, match="could run code"):
        load_sae(folder)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(MoeProbeError, match="no SAE in"):
        load_sae(tmp_path / "nowhere")
    ours = save_sae(all_trained["topk"], tmp_path / "ours")
    with pytest.raises(MoeProbeError, match="width 32"):
        load_sae(ours, d_in=64)
    (ours / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(MoeProbeError, match="cannot be read"):
        load_sae(ours)


def test_hook_point_is_checked(tmp_path: Path) -> None:
    config = SaeConfig(d_in=4, d_sae=8, k=2, hook="expert_output", model_id="m")
    folder = save_sae(make_sae(config), tmp_path / "s")
    assert load_sae(folder, hook="expert_output").config.hook == "expert_output"
    with pytest.raises(MoeProbeError, match="trained on expert_output"):
        load_sae(folder, hook="residual")


def test_bad_activations_are_refused() -> None:
    config = SaeConfig(d_in=4, d_sae=8, k=2)
    with pytest.raises(MoeProbeError, match="do not vary"):
        train_saes(repeat(torch.ones(64, 4), 200), [config])
    bad = torch.randn(64, 4)
    bad[7, 2] = float("nan")
    with pytest.raises(MoeProbeError, match="row 7 of batch 0"):
        train_saes([bad], [config])
    with pytest.raises(MoeProbeError, match="no activations to train on"):
        train_saes([], [config])
    with pytest.raises(MoeProbeError, match="shape"):
        train_saes([torch.randn(8, 5)], [config])
    with pytest.raises(MoeProbeError, match="one width"):
        train_saes([torch.randn(8, 4)], [config, SaeConfig(d_in=5, d_sae=8)])
    with pytest.raises(ValueError, match="d_sae"):
        SaeConfig(d_in=4, d_sae=0)
    with pytest.raises(MoeProbeError, match="unknown SAE architecture"):
        make_sae(SaeConfig(architecture="topkk", d_in=4, d_sae=8))


def test_fewer_tokens_than_latents_still_train() -> None:
    sae = train_saes([activations(0, 20)], [SaeConfig(d_in=D, d_sae=256, k=4)], options=TrainOptions(steps=5))[0]
    assert torch.isfinite(sae(activations(0, 20))).all()
