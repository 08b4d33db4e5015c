"""Training: several SAEs in one pass over one stream of activations, seeded and resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae.activations import ActivationReader, select
from moe_probe.sae.architectures.base import Sae
from moe_probe.sae.config import SaeConfig, TrainOptions
from moe_probe.sae.training.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from moe_probe.sae.training.steps import SAY_EVERY, Progress, Training

Say = Callable[[Progress], None]


def _silent(progress: Progress) -> None:
    """Say nothing."""


def train_saes(
    batches: Iterable[Tensor],
    configs: Sequence[SaeConfig],
    *,
    options: TrainOptions | None = None,
    say: Say = _silent,
) -> list[Sae]:
    """Train SAEs of any widths and architectures on the same batches of plain activations.

    Parameters
    ----------
    batches : iterable of Tensor, shape (n_tokens, d_in)
        Shuffled activations; as many as ``options.steps`` are used.
    configs : sequence of SaeConfig
        All of one ``d_in``.
    say : callable
        Told the progress of every SAE every 50 steps.

    Returns
    -------
    list of Sae
        In evaluation mode; thresholds of batch architectures are fixed on the last batches, which
        `BatchTopK.fix_threshold` on held-out activations replaces.

    Raises
    ------
    MoeProbeError
        When there is nothing to train on, activations have another width or hold NaN or infinite values,
        or they do not vary.
    """
    options = options or TrainOptions()
    stream = _checked(batches, configs)
    first = _first(stream, options.sample)
    tokens = options.steps * len(first[0])
    runs = [Training.start(c, torch.cat(first), options, steps=options.steps, tokens=tokens) for c in configs]
    last: Tensor = first[0]
    for step, batch in enumerate(_replayed(first, stream)):
        if step == options.steps:
            break
        last = batch
        for run in runs:
            _step(run, batch, say)
    for run in runs:
        _finish(run, last)
    return [run.sae for run in runs]


@dataclass(frozen=True)
class Trained:
    """An SAE and what training it took.

    ``progress`` is of the last step; ``seconds`` is this SAE's own time in steps, without reading.
    """

    sae: Sae
    progress: Progress
    seconds: float


def train_on(
    reader: ActivationReader,
    configs: Sequence[SaeConfig],
    *,
    held_out: ActivationReader | None = None,
    options: TrainOptions | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    say: Say = _silent,
) -> list[Trained]:
    """Train SAEs of any widths, architectures and experts in one pass over a trace's activations.

    An SAE of some experts sees the tokens that chose them, gathered until they make a batch; so SAEs of all
    experts of a layer are trained at once from one reading.

    Parameters
    ----------
    reader : ActivationReader
        With ``slots`` where an SAE is of the outputs of some experts.
    configs : sequence of SaeConfig
    held_out : ActivationReader, optional
        Activations on which thresholds are fixed (batchtopk, matryoshka); the training ones when left out.
    checkpoint : Path, optional
        Folder to which the state is written every `checkpoint_seconds`, and from which it is taken up when
        there is one. An interrupted training that goes on ends with the same bits as one that was not.

    Raises
    ------
    MoeProbeError
        When there are fewer tokens than latents, activations have another width, hold NaN or infinite
        numbers or do not vary, or the checkpoint belongs to another training.
    """
    options = options or TrainOptions(batch_tokens=reader.batch_tokens)
    counts = reader.expert_counts() if any(c.experts is not None for c in configs) else None
    epochs = [reader.n_batches(e) for e in range(options.epochs)]
    runs = [_Gathered(*_begin(reader, c, options, counts, sum(epochs))) for c in configs]
    done = 0
    if checkpoint is not None:
        done = load_checkpoint(
            checkpoint, [r.training for r in runs], [r.pending for r in runs], state=_state(reader, options)
        )
    saved = time.monotonic()
    for epoch, n in enumerate(epochs):
        before = sum(epochs[:epoch])
        if done >= before + n:
            continue
        for batch in reader.batches(epoch=epoch, start=max(0, done - before)):
            for run in runs:
                run.take(select(batch, run.training.sae.config), say)
            done += 1
            if checkpoint is not None and time.monotonic() - saved > checkpoint_seconds:
                save_checkpoint(
                    checkpoint,
                    [r.training for r in runs],
                    [r.pending for r in runs],
                    done=done,
                    state=_state(reader, options),
                )
                saved = time.monotonic()
    for run in runs:
        run.flush(say)
        _finish(run.training, _sample(held_out or reader, run.training.sae.config, 65536))
    if checkpoint is not None:
        remove_checkpoint(checkpoint)
    return [Trained(run.training.sae, run.training.progress, run.seconds) for run in runs]


class _Gathered:
    """A training whose tokens are gathered until they make a batch."""

    def __init__(self, training: Training, batch_tokens: int) -> None:
        self.training, self.batch_tokens = training, batch_tokens
        self.pending: list[Tensor] = []
        self.seconds = 0.0

    def take(self, values: Tensor, say: Say) -> None:
        if self.training.sae.config.experts is None:
            self._step(values, say)  # the reader's batch is the batch
            return
        self.pending.append(values)
        if sum(map(len, self.pending)) >= self.batch_tokens:
            self.flush(say)

    def flush(self, say: Say) -> None:
        if sum(map(len, self.pending)):
            values = torch.cat(self.pending)
            self.pending.clear()
            self._step(values, say)

    def _step(self, values: Tensor, say: Say) -> None:
        started = time.perf_counter()
        _step(self.training, values, say)
        self.seconds += time.perf_counter() - started


def _begin(
    reader: ActivationReader,
    config: SaeConfig,
    options: TrainOptions,
    counts: Any,
    n_batches: int,
) -> tuple[Training, int]:
    if config.d_in != reader.d_in:
        raise MoeProbeError(
            f"an SAE of d_in {config.d_in} cannot be trained on {reader.hook}",
            f"these activations have width {reader.d_in}",
            f"d_in {reader.d_in}",
        )
    tokens = reader.n_tokens
    if config.experts is not None:
        several = len(config.experts) > 1
        tokens = sum(len(select(b, config)) for b in reader.in_order()) if several else int(counts[config.experts[0]])
    if tokens < config.d_sae:
        whose = "" if config.experts is None else f" of expert {', '.join(map(str, config.experts))}"
        raise MoeProbeError(
            f"{config.d_sae:,} latents cannot be learnt from {tokens:,} tokens{whose}",
            "most would never fire",
            "a narrower SAE, more documents, or a larger --hidden-share",
        )
    size = options.batch_tokens if config.experts is None else max(256, min(options.batch_tokens, tokens // 16))
    steps = n_batches if config.experts is None else max(1, tokens * options.epochs // size)
    sample = _sample(reader, config, options.sample)
    return Training.start(config, sample, options, steps=steps, tokens=tokens * options.epochs), size


def _sample(reader: ActivationReader, config: SaeConfig, rows: int) -> Tensor:
    """The first activations of a shuffled pass, shape (at most about `rows`, d_in)."""
    found: list[Tensor] = []
    for batch in reader.batches():
        found.append(select(batch, config).float())
        if sum(map(len, found)) >= rows:
            break
    return torch.cat(found)


def _state(reader: ActivationReader, options: TrainOptions) -> dict[str, object]:
    """What must be the same for a checkpoint to be gone on with."""
    return {
        "trace": [s.files[0].sha256 for s in reader.trace.manifest.shards],
        "layer": reader.layer,
        "hook": reader.hook,
        "tokens": reader.n_tokens,
        "seed": reader.seed,
        "options": vars(options),
    }


def _checked(batches: Iterable[Tensor], configs: Sequence[SaeConfig]) -> Iterator[Tensor]:
    widths = {c.d_in for c in configs}
    if len(widths) != 1:
        raise MoeProbeError(
            "SAEs trained together need one width of activations", f"they have {sorted(widths)}", "one call per width"
        )
    (d_in,) = widths
    for number, batch in enumerate(batches):
        if batch.ndim != 2 or batch.shape[1] != d_in:
            raise MoeProbeError(
                f"batch {number} has the shape {tuple(batch.shape)}",
                f"(tokens, {d_in}) is expected",
                f"SAEs of d_in {batch.shape[-1]}",
            )
        if not torch.isfinite(batch.sum(dtype=torch.float32)) and not torch.isfinite(batch).all():
            row = int((~torch.isfinite(batch)).any(1).nonzero()[0])
            raise MoeProbeError(
                f"row {row} of batch {number} holds NaN or infinite activations",
                "one such row would spoil every latent",
                "leave its document out",
            )
        yield batch.float()


def _first(stream: Iterator[Tensor], rows: int) -> list[Tensor]:
    found: list[Tensor] = []
    for batch in stream:
        found.append(batch)
        if sum(len(b) for b in found) >= rows:
            break
    if not found:
        raise MoeProbeError(
            "there are no activations to train on",
            "the stream is empty",
            "collect with --keep hidden, or widen the choice of tokens",
        )
    return found


def _replayed(first: list[Tensor], stream: Iterator[Tensor]) -> Iterator[Tensor]:
    yield from first
    yield from stream


def _step(run: Training, batch: Tensor, say: Say) -> None:
    run.step(batch)
    if run.progress.step % SAY_EVERY == 0 or run.progress.step == run.steps:
        say(run.progress)


def _finish(run: Training, sample: Tensor) -> None:
    run.sae.eval()
    run.sae.low_precision = False
    if run.sae.uses_threshold:
        run.sae.fix_threshold(sample.to(run.sae.W_dec.device))  # type: ignore[operator]
    run.sae.cpu()
