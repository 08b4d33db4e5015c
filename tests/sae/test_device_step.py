"""A step as a GPU runs it, without one: it never waits for the device, and finds what the plain computation finds."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from moe_probe.sae import SaeConfig, TrainOptions, make_sae
from moe_probe.sae.architectures.ops import top_k
from moe_probe.sae.training import dead, update
from moe_probe.sae.training.dead import Idle
from moe_probe.sae.training.steps import Training


class Counted:
    """A number that was copied to the host while the device worked."""

    known = True

    def __init__(self, value: int = 5) -> None:
        self.value, self.sent = value, 0

    def send(self, number: torch.Tensor) -> None:
        assert number.shape == ()
        self.sent += 1

    def read(self) -> int:
        return self.value


def on_meta(architecture: str, monkeypatch: pytest.MonkeyPatch, *, d_in: int = 64, d_sae: int = 512) -> Training:
    """Begin a training on the meta device: as on a GPU, and every question for a value raises."""
    monkeypatch.setattr(dead, "HostNumber", Counted)
    sae = make_sae(SaeConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, k=16)).to("meta").train()
    sae.low_precision = True
    training = Training(sae, TrainOptions(), steps=1000, patience=100)
    training.progress.step = 1  # the first step is measured, which asks
    return training


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_step_asks_the_device_for_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three steps, the last two have dead latents to bring back."""
    training = on_meta(architecture, monkeypatch)
    for _ in range(3):
        training.step(torch.empty(128, 64, device="meta"))
    assert training.progress.tokens == 384 and training.idle._count.sent == 3  # type: ignore[attr-defined]


def test_questions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness of the test above can fail: Matryoshka SAEs count the active latents of each of their levels."""
    with pytest.raises((NotImplementedError, RuntimeError), match=r"meta|data-dependent|nonzero"):
        on_meta("matryoshka", monkeypatch).step(torch.empty(128, 64, device="meta"))


class _LargeMatrices(TorchDispatchMode):
    """Counts tensors of at least a size that operations make."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.made = n, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
        self.made += sum(t.numel() * t.element_size() >= self.n and not func.is_view for t in made)
        return out


def test_no_pre_activation_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 tokens x 8,192 latents: 64 MiB in bfloat16; nothing of 128 MiB is made."""
    training = on_meta("topk", monkeypatch, d_in=64, d_sae=8192)
    with _LargeMatrices(4096 * 8192 * 4) as large:
        training.step(torch.empty(4096, 64, device="meta"))
    assert large.made == 0
    with _LargeMatrices(4096 * 8192 * 2) as large:
        training.step(torch.empty(4096, 64, device="meta"))
    assert large.made == 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.sampled_from([1, 7, 64, 96, 512, 4096]), st.integers(1, 40), st.integers(0, 10**6), st.booleans()
)
def test_the_k_largest_by_groups_are_the_k_largest(n: int, columns: int, k: int, seed: int, bfloat16: bool) -> None:
    k = min(k, columns)
    values = torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))
    values = values.bfloat16() if bfloat16 else values  # bfloat16: many equal values
    found, where = top_k(values, k)
    assert torch.equal(found.sort(dim=1, descending=True).values, values.topk(k, dim=1).values)
    assert torch.equal(values.gather(1, where), found)
    assert all(len(set(row)) == k for row in where.tolist())


def test_low_precision_chooses_among_dead_latents_only() -> None:
    sae = make_sae(SaeConfig(d_in=32, d_sae=4096, k=4))
    x, among = torch.randn(20, 32), torch.zeros(4096, dtype=torch.bool)
    among[torch.randperm(4096)[:600]] = True
    with torch.no_grad():
        sae.b_dec.normal_()
        pre = sae.pre_activations(x).masked_fill(~among, -torch.inf)
    for sae.low_precision in (False, True):
        values, indices = sae.largest(x, 8, among=among)
        assert among[indices].all()
        assert torch.allclose(values, pre.gather(1, indices), atol=0.05)
        assert torch.allclose(values.sort(1, descending=True).values, pre.topk(8).values, atol=0.05)


def test_tokens_since_a_latent_fired() -> None:
    """Compared with a loop; a value of 0 is no firing."""
    idle = Idle(6, patience=5, device=torch.device("cpu"))
    by_hand = [0] * 6
    generator = torch.Generator().manual_seed(0)
    seen = 0
    for n in (3, 1, 4, 2, 5):
        values = torch.rand(n, 2, generator=generator).round()
        indices = torch.randint(0, 5, (n, 2), generator=generator)
        assert idle.dead(seen) is None or idle.dead(seen).tolist() == [t > 5 for t in by_hand]  # type: ignore[union-attr]
        seen += n
        idle.note(values, indices, seen=seen)
        fired = {int(i) for i, v in zip(indices.flatten(), values.flatten(), strict=True) if v > 0}
        by_hand = [0 if i in fired else t + n for i, t in enumerate(by_hand)]
        assert idle.tokens.tolist() == by_hand
    assert idle.dead(seen) is not None and by_hand[5] == 15  # latent 5 never fires


def test_a_gpu_whose_kernels_fail_or_differ_trains_by_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "moe_probe.sae.training.kernels", object())

    def broken(_device: object) -> float:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(update, "_largest_difference", broken)
    with pytest.warns(RuntimeWarning, match="no compiler.*plain torch is used"):
        assert not update.kernels_agree(torch.device("cuda:7"))
    monkeypatch.setattr(update, "_largest_difference", lambda _device: 0.1)
    with pytest.warns(RuntimeWarning, match=r"differs from plain torch by 1.0e-01"):
        assert not update.kernels_agree(torch.device("cuda:8"))


def test_what_an_sae_on_another_gpu_needs_is_queued_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of a number is recorded on its GPU's stream, and kernels start on the GPU of their matrices."""
    events, entered = MagicMock(), MagicMock()
    monkeypatch.setattr(torch.cuda, "Event", events)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "empty", MagicMock())
    dead.HostNumber().send(SimpleNamespace(is_cuda=True, device="cuda:1", dtype=torch.long))  # type: ignore[arg-type]
    events.return_value.record.assert_called_once_with("stream of cuda:1")
    for name in ("triton", "triton.language"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.delitem(sys.modules, "moe_probe.sae.training.kernels", raising=False)
    kernels = importlib.import_module("moe_probe.sae.training.kernels")
    del sys.modules["moe_probe.sae.training.kernels"], sys.modules["moe_probe.sae.training"].kernels  # not for other tests
    monkeypatch.setattr(torch.cuda, "device_of", entered)
    matrix = torch.zeros(3, 4)
    kernels._launch(MagicMock(), 3, matrix, 4, BLOCK=4)
    assert entered.call_args.args[0] is matrix and entered.return_value.__enter__.called
