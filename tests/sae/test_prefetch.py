"""Reading ahead of the steps: the same batches in the same order, errors as they are, threads that end, little memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae import ActivationReader, Batch, SaeConfig, TrainOptions, prefetch, train_on
from moe_probe.sae.prefetch import epochs_of
from moe_probe.sae.training.steps import Training
from moe_probe.testing import PlantedFeature, planted_activations
from moe_probe.testing.activations import PlantedActivations

CONFIGS = [SaeConfig(d_in=16, d_sae=24, k=3), SaeConfig(d_in=16, d_sae=16, k=2, experts=(1,))]
OPTIONS = TrainOptions(epochs=2, batch_tokens=128)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedActivations:
    features = (PlantedFeature("word", 0), PlantedFeature("topic", 1), *(PlantedFeature("noise"),) * 6)
    shape = {"d_in": 16, "topics": 3, "documents_per_topic": 12, "tokens": 80, "num_experts": 4, "top_k": 2}
    return planted_activations(tmp_path_factory.mktemp("planted") / "trace", features=features, **shape)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def several_pools(planted: PlantedActivations) -> ActivationReader:
    reader = ActivationReader(planted.trace, layer=0, batch_tokens=128, pool_bytes=20_000)
    assert len(reader._groups(0)) > 2
    return reader


@pytest.mark.parametrize("start", [0, 1, 9, 23, 30, 45])
def test_the_same_batches_in_the_same_order(planted: PlantedActivations, start: int) -> None:
    reader = several_pools(planted)
    plain = [batch for epoch in range(2) for batch in reader.batches(epoch=epoch)][start:]
    for ahead in (0, 1, 3):
        with epochs_of(reader, epochs=2, start=start, ahead=ahead) as batches:
            read = list(batches)
        assert len(read) == len(plain)
        assert all(torch.equal(a, b) for x, y in zip(read, plain, strict=True) for a, b in zip(x, y, strict=True))


def test_saes_are_equal_to_the_bit_and_checkpoints_fit_both(planted: PlantedActivations, tmp_path: Path) -> None:
    """Without threads; with; and interrupted with threads, then resumed without."""

    def interrupt(progress: object) -> None:
        if progress.steps > 40 and progress.step >= 40:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    plain, ahead = (train_on(several_pools(planted), CONFIGS, options=OPTIONS, ahead=n) for n in (0, 2))
    options = TrainOptions(epochs=4, batch_tokens=128)
    whole = train_on(several_pools(planted), CONFIGS, options=options, ahead=0)
    shared = {"options": options, "checkpoint": tmp_path / "state", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train_on(several_pools(planted), CONFIGS, **shared, say=interrupt)  # type: ignore[arg-type]
    assert (tmp_path / "state").exists()
    resumed = train_on(several_pools(planted), CONFIGS, **shared, ahead=0)  # type: ignore[arg-type]
    for first, second in ((plain, ahead), (whole, resumed)):
        for a, b in zip(first, second, strict=True):
            assert all(torch.equal(x, b.sae.state_dict()[name]) for name, x in a.sae.state_dict().items())


def test_errors_of_reading_are_raised_as_they_are(planted: PlantedActivations, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third pool cannot be read; the steps on the pools before it are taken."""
    reader, read = several_pools(planted), ActivationReader._stored
    seen: set[Path] = set()

    def fail(self: ActivationReader, shard: object) -> Tensor:
        seen.add(shard.path)  # type: ignore[attr-defined]
        if len(seen) > 2:
            raise MoeProbeError("the disk is gone", "", "")
        return read(self, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(ActivationReader, "_stored", fail)
    with epochs_of(reader, epochs=1) as batches, pytest.raises(MoeProbeError, match="the disk is gone"):
        assert len([next(batches) for _ in range(4)]) == 4
        list(batches)


def test_errors_of_a_step_end_the_threads(planted: PlantedActivations, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Training, _batch: Tensor) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Training, "step", fail)
    with pytest.raises(ZeroDivisionError):
        train_on(several_pools(planted), CONFIGS[:1], options=OPTIONS)


def test_a_slow_disk_is_hidden_behind_slow_steps(planted: PlantedActivations, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools take 0.1 s to read, their steps 0.1 s as well: in turns 0.2 s a pool, ahead little more than 0.1."""
    read, reader = ActivationReader._read, several_pools(planted)
    n_pools, n_batches = len(reader._groups(0)), reader.n_batches()

    def slow(self: ActivationReader, group: object) -> Batch:
        time.sleep(0.1)
        return read(self, group)  # type: ignore[arg-type]

    monkeypatch.setattr(ActivationReader, "_read", slow)
    seconds = []
    for ahead in (0, 2):
        started = time.perf_counter()
        with epochs_of(reader, epochs=1, ahead=ahead) as batches:
            for _ in batches:
                time.sleep(0.1 * n_pools / n_batches)
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 0.8 * seconds[0]


class Lane:
    """Stands for a GPU's stream and its events: what is copied arrives only when someone waits for it."""

    def __init__(self, *_: object) -> None:
        self.late: list[tuple[Tensor, Tensor]] = []

    def synchronize(self) -> None:
        for target, source in self.late:
            target.copy_(source)
        self.late.clear()

    def wait_event(self, event: Lane) -> None:
        event.synchronize()


def test_memory_is_not_used_again_before_its_copy_has_ended(
    planted: PlantedActivations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy takes the values as they are when it is waited for: a buffer that was filled again too early would show."""
    sizes = []

    def start(values: Tensor, _device: torch.device, _stream: Lane, done: Lane) -> Tensor:
        target = torch.full_like(values, torch.nan)
        done.late.append((target, values))
        return target

    def memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        sizes.append(shape[0])
        return torch.empty(shape, dtype=dtype)

    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Lane)
    monkeypatch.setattr(Tensor, "record_stream", lambda _tensor, _stream: None)
    monkeypatch.setattr(prefetch, "_start_copy", start)
    monkeypatch.setattr(prefetch, "_pinned", memory)
    reader = several_pools(planted)
    with epochs_of(reader, epochs=2, device=torch.device("cuda")) as batches:
        for batch, plain in zip(batches, (b for e in (0, 1) for b in reader.batches(epoch=e)), strict=True):
            time.sleep(0.003)  # as many batches are made meanwhile as may be
            assert torch.equal(batch.values, plain.values) and torch.equal(batch.rows, plain.rows)
    assert sum(size > 0 for size in sizes) <= 9  # three buffers, grown once or twice; not one per batch
