"""Activations of a trace as training reads them: every token once, shuffled, resumable, and bad rows named."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import write_whole
from moe_probe.recording.trace import Trace
from moe_probe.sae import ActivationReader, SaeConfig, TrainOptions, train_on
from moe_probe.sae.activations import select
from moe_probe.sae.held_out import held_out_documents
from moe_probe.testing import PlantedFeature, planted_activations
from moe_probe.testing.activations import PlantedActivations

FEATURES = (PlantedFeature("word", 0), PlantedFeature("topic", 1), *(PlantedFeature("noise"),) * 6)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedActivations:
    return planted_activations(
        tmp_path_factory.mktemp("planted") / "trace",
        features=FEATURES,
        d_in=16,
        topics=3,
        documents_per_topic=12,
        tokens=80,
        num_experts=4,
        top_k=2,
    )


def rows_of(batches) -> np.ndarray:
    return np.concatenate([b.rows.numpy() for b in batches])


@pytest.mark.parametrize("pool_bytes", [2**30, 20_000])
def test_every_token_once_an_epoch_in_an_order_of_the_seed(planted: PlantedActivations, pool_bytes: int) -> None:
    reader = ActivationReader(planted.trace, layer=0, batch_tokens=100, pool_bytes=pool_bytes)
    first, second = (rows_of(reader.batches(epoch=e)) for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(planted.trace.n_tokens))
    assert (first != second).any() and (np.diff(first) == 1).mean() < 0.05
    again = ActivationReader(planted.trace, layer=0, batch_tokens=100, pool_bytes=pool_bytes)
    assert (rows_of(again.batches()) == first).all()
    other = ActivationReader(planted.trace, layer=0, batch_tokens=100, pool_bytes=pool_bytes, seed=1)
    assert (rows_of(other.batches()) != first).any()
    sizes = [len(b.rows) for b in reader.batches()]
    assert len(sizes) == reader.n_batches() and 50 <= min(sizes) <= max(sizes) <= 150


@pytest.mark.parametrize("pool_bytes", [2**30, 20_000])
@pytest.mark.parametrize("start", [0, 1, 7, 28])
def test_an_epoch_goes_on_from_any_batch(planted: PlantedActivations, pool_bytes: int, start: int) -> None:
    reader = ActivationReader(planted.trace, layer=0, batch_tokens=100, pool_bytes=pool_bytes)
    whole = [b.rows for b in reader.batches(epoch=1)]
    rest = [b.rows for b in reader.batches(epoch=1, start=start)]
    assert len(rest) == len(whole) - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_values_experts_and_rows_belong_together(planted: PlantedActivations) -> None:
    trace = planted.trace
    values = torch.cat([part["values"] for part in trace.iter_extras("hidden/layer_00")])
    experts = np.concatenate([chunk.experts[:, 0] for chunk in trace.iter_routing([0])])
    keep = np.zeros(len(trace.documents), dtype=bool)
    keep[[1, 5, 30]] = True
    document = trace.tokens(["document"])["document"].to_numpy()
    reader = ActivationReader(trace, layer=0, documents=keep, batch_tokens=64)
    assert reader.n_tokens == 240 and set(document[rows_of(reader.batches())]) == {1, 5, 30}
    for batch in reader.batches():
        assert torch.equal(batch.values, values[batch.rows])
        assert (batch.experts.numpy() == experts[batch.rows.numpy()]).all()
    counts = np.bincount(experts[keep[document]].ravel(), minlength=4)
    assert (reader.expert_counts() == counts).all()


def test_one_experts_part_of_the_output(planted: PlantedActivations) -> None:
    reader = ActivationReader(planted.trace, layer=0, hook="expert_output", slots=True, batch_tokens=500)
    config = SaeConfig(d_in=16, d_sae=8, hook="expert_output", experts=(2,))
    batch = next(iter(reader.batches()))
    by_hand = [batch.values[t, s] for t in range(len(batch.rows)) for s in range(2) if batch.experts[t, s] == 2]
    assert torch.equal(select(batch, config), torch.stack(by_hand).to(batch.values.dtype))
    group = select(batch, config.model_copy(update={"experts": (0, 1, 2, 3)}))
    assert torch.allclose(group.float(), batch.values.float().sum(1), atol=0.05)
    whole = ActivationReader(planted.trace, layer=0, hook="expert_output", batch_tokens=500)
    assert next(iter(whole.batches())).values.shape == (len(batch.rows), 16)


def test_absent_activations_are_named(planted: PlantedActivations) -> None:
    with pytest.raises(MoeProbeError, match="--keep residual"):
        ActivationReader(planted.trace, layer=0, hook="residual")
    with pytest.raises(MoeProbeError, match="router_input"):
        ActivationReader(planted.trace, layer=0, hook="router_imput")
    with pytest.raises(MoeProbeError, match="no MoE layer 3"):
        ActivationReader(planted.trace, layer=3)
    with pytest.raises(MoeProbeError, match="no token of layer 0"):
        ActivationReader(planted.trace, layer=0, documents=np.zeros(36, dtype=bool))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_rows_are_named_by_document_and_position(tmp_path: Path, bad: float) -> None:
    made = planted_activations(tmp_path / "trace", features=FEATURES, d_in=8, topics=3, documents_per_topic=4, tokens=20)
    path = sorted((tmp_path / "trace" / "hidden" / "layer_00").glob("*.safetensors"))[1]
    tensors = load_file(path)
    tensors["values"][27, 3] = bad
    save_file(tensors, path)
    reader = ActivationReader(Trace.open(made.trace.root), layer=0)
    with pytest.raises(MoeProbeError, match=r"document 'document-0005', position 7"):
        list(reader.batches())


def trained(planted: PlantedActivations, configs, checkpoint: Path | None = None, stop: int | None = None, **options):
    reader = ActivationReader(planted.trace, layer=0, batch_tokens=128)

    def say(progress) -> None:
        if stop is not None and progress.step >= stop:
            raise KeyboardInterrupt

    return train_on(
        reader,
        configs,
        options=TrainOptions(epochs=6, batch_tokens=128),
        checkpoint=checkpoint,
        checkpoint_seconds=0,
        say=say,
    )


CONFIGS = [
    SaeConfig(d_in=16, d_sae=24, k=3),
    SaeConfig(d_in=16, d_sae=32, k=2, architecture="batchtopk"),
    SaeConfig(d_in=16, d_sae=16, k=2, experts=(1,)),
    SaeConfig(d_in=16, d_sae=12, k=2, experts=(0, 3)),
]


def test_an_interrupted_training_ends_with_the_same_bits(planted: PlantedActivations, tmp_path: Path) -> None:
    whole = trained(planted, CONFIGS)
    with pytest.raises(KeyboardInterrupt):
        trained(planted, CONFIGS, tmp_path / "checkpoint", stop=50)
    assert (tmp_path / "checkpoint").exists()
    resumed = trained(planted, CONFIGS, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    for a, b in zip(whole, resumed, strict=True):
        assert a.progress.step == b.progress.step
        for name, value in a.sae.state_dict().items():
            assert torch.equal(value, b.sae.state_dict()[name]), name


def test_a_slow_disk_holds_up_no_step_and_a_full_one_ends_the_training(
    planted: PlantedActivations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write takes 0.3 s: few checkpoints are begun, and the steps take no part of it. Then the disk is full."""
    written = []

    def slow(path: Path, write) -> None:
        time.sleep(0.3)
        written.append(path)
        write_whole(path, write)

    monkeypatch.setattr("moe_probe.sae.training.checkpoint.write_whole", slow)
    with pytest.raises(KeyboardInterrupt):
        trained(planted, CONFIGS[:1], tmp_path / "checkpoint", stop=100)
    assert 1 <= len(written) < 50
    assert (tmp_path / "checkpoint" / "state.safetensors").exists()

    def full(_path: Path, _write) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("moe_probe.sae.training.checkpoint.write_whole", full)
    with pytest.raises(MoeProbeError, match="the last checkpoint is kept"):
        trained(planted, CONFIGS[:1], tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "state.safetensors").exists()


def test_a_checkpoint_of_another_training_is_refused(planted: PlantedActivations, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(planted, CONFIGS[:1], tmp_path / "checkpoint", stop=50)
    with pytest.raises(MoeProbeError, match="another training"):
        trained(planted, CONFIGS[1:2], tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "state.safetensors").write_bytes(b"half")
    with pytest.raises(MoeProbeError, match="cannot be read"):
        trained(planted, CONFIGS[:1], tmp_path / "checkpoint")


def test_saes_of_experts_come_out_the_same_together_and_alone(planted: PlantedActivations) -> None:
    together = trained(planted, CONFIGS)
    for config, made in zip(CONFIGS, together, strict=True):
        alone = trained(planted, [config])[0]
        assert torch.equal(alone.sae.W_dec, made.sae.W_dec)


def test_what_cannot_be_learnt_is_refused(planted: PlantedActivations, tmp_path: Path) -> None:
    with pytest.raises(MoeProbeError, match="4,096 latents cannot be learnt from 2,880 tokens"):
        trained(planted, [SaeConfig(d_in=16, d_sae=4096)])
    with pytest.raises(MoeProbeError, match="of expert 2"):
        trained(planted, [SaeConfig(d_in=16, d_sae=2800, experts=(2,))])
    with pytest.raises(MoeProbeError, match="d_in 8"):
        trained(planted, [SaeConfig(d_in=8, d_sae=16)])
    one = planted_activations(tmp_path / "one", features=FEATURES, topics=3, documents_per_topic=2, group_size=2, tokens=30)
    one.trace.documents["group"] = "g"
    with pytest.raises(MoeProbeError, match="a single document"):
        held_out_documents(one.trace)


def test_held_out_documents_are_a_quarter_of_every_topic(planted: PlantedActivations) -> None:
    held = held_out_documents(planted.trace)
    assert planted.trace.documents[held].groupby("topic").size().tolist() == [3, 3, 3]
    assert (held == held_out_documents(planted.trace)).all()
