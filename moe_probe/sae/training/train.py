"""Training: several SAEs in one pass over one stream of activations, seeded and resumable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae.activations import ActivationReader, select
from moe_probe.sae.architectures.base import Sae
from moe_probe.sae.config import SaeConfig, TrainOptions
from moe_probe.sae.prefetch import AHEAD, epochs_of
from moe_probe.sae.training.checkpoint import CheckpointWriter, load_checkpoint, remove_checkpoint
from moe_probe.sae.training.dead import HostNumber
from moe_probe.sae.training.steps import SAY_EVERY, Progress, Training

OnProgress = Callable[[Progress], None]

#: Tokens on which the threshold of a batch architecture is fixed.
_THRESHOLD_TOKENS = 65536


def _silent(_progress: Progress) -> None:
    """Show nothing."""


def train_saes(
    batches: Iterable[Tensor],
    configs: Sequence[SaeConfig],
    *,
    options: TrainOptions | None = None,
    say: OnProgress = _silent,
) -> list[Sae]:
    """Train SAEs of any widths and architectures on the same batches of plain activations.

    Parameters
    ----------
    batches : iterable of Tensor, shape (n_tokens, d_in)
        Shuffled activations; as many batches as ``options.steps`` are used.
    configs : sequence of SaeConfig
        All of one ``d_in``.
    options : TrainOptions, optional
    say : callable
        Called with the progress of every SAE every 50 steps.

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
    first = _gather(stream, options.sample)
    if not first:
        raise MoeProbeError(
            "there are no activations to train on",
            "the stream is empty",
            "collect with --keep hidden, or widen the choice of tokens",
        )
    sample, tokens = torch.cat(first), options.steps * len(first[0])
    runs = [Training.start(c, sample, options, steps=options.steps, tokens=tokens) for c in configs]
    last: Tensor = first[0]
    for step, batch in enumerate(chain(first, stream)):
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
    """An SAE and what its training took.

    Attributes
    ----------
    sae : Sae
    progress : Progress
        Of the last step.
    seconds : float
        Time of this SAE's own steps, without reading.
    """

    sae: Sae
    progress: Progress
    seconds: float


def train_on(  # noqa: PLR0913 - public API: keyword-only options with defaults
    reader: ActivationReader,
    configs: Sequence[SaeConfig],
    *,
    held_out: ActivationReader | None = None,
    options: TrainOptions | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    ahead: int = AHEAD,
    say: OnProgress = _silent,
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
        Activations on which thresholds are fixed (batchtopk, matryoshka); by default those of training.
    options : TrainOptions, optional
    checkpoint : Path, optional
        Folder to which the state of the training is written, and from which it is resumed where there is one.
        A training that was interrupted and resumed ends with the same bits as one that was not.
    checkpoint_seconds : float
        Seconds between two checkpoints.
    ahead : int
        Batches that are read while the steps run (`moe_probe.sae.prefetch`); 0 to read in turns with the steps.
    say : callable
        Called with the progress of every SAE every 50 steps.

    Returns
    -------
    list of Trained

    Raises
    ------
    MoeProbeError
        When there are fewer tokens than latents, activations have another width, have NaN or infinite
        numbers or do not vary, or the checkpoint belongs to another training.
    """
    options = options or TrainOptions(batch_tokens=reader.batch_tokens)
    counts = reader.expert_counts() if any(c.experts is not None for c in configs) else None
    n_batches = sum(reader.n_batches(epoch) for epoch in range(options.epochs))
    runs = [_begin(reader, c, options, counts=counts, n_batches=n_batches) for c in configs]
    trainings, pending = [run.training for run in runs], [run.pending for run in runs]
    state, done = _state(reader, options), 0
    if checkpoint is not None:
        done = load_checkpoint(checkpoint, trainings, pending, state=state)
    # SAEs of some experts choose their tokens on the CPU
    device = options.torch_device() if all(c.experts is None for c in configs) else None
    ahead_of = epochs_of(reader, epochs=options.epochs, start=done, device=device, ahead=ahead)
    writer = CheckpointWriter(checkpoint, trainings, pending, state=state) if checkpoint is not None else nullcontext()
    saved = time.monotonic()
    with ahead_of as batches, writer as checkpoints:
        for batch in batches:
            for run in runs:
                run.take(select(batch, run.training.sae.config), say)
            done += 1
            if checkpoints is not None and time.monotonic() - saved > checkpoint_seconds and checkpoints.save(done):
                saved = time.monotonic()
    for run in runs:
        run.flush(say)
        _finish(run.training, _sample(held_out or reader, run.training.sae.config, _THRESHOLD_TOKENS))
    if checkpoint is not None:
        remove_checkpoint(checkpoint)
    return [Trained(run.training.sae, run.training.progress, run.seconds) for run in runs]


@dataclass
class _Gathered:
    """A training whose tokens are gathered until they make a batch."""

    training: Training
    batch_tokens: int
    pending: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, values: Tensor, say: OnProgress) -> None:
        self.pending.append(values)
        # for an SAE of all tokens, the reader's batch is the batch
        if self.training.sae.config.experts is None or sum(map(len, self.pending)) >= self.batch_tokens:
            self.flush(say)

    def flush(self, say: OnProgress) -> None:
        if sum(map(len, self.pending)):
            started = time.perf_counter()
            values = torch.cat(self.pending) if len(self.pending) > 1 else self.pending[0]
            self.pending.clear()
            _step(self.training, values, say)
            self.seconds += time.perf_counter() - started


def _begin(reader: ActivationReader, config: SaeConfig, options: TrainOptions, *, counts: Any, n_batches: int) -> _Gathered:
    """Start the training of one SAE; `counts` has the tokens of each expert, `n_batches` the reader's batches."""
    if config.d_in != reader.d_in:
        raise MoeProbeError(
            f"an SAE of d_in {config.d_in} cannot be trained on {reader.hook}",
            f"these activations have width {reader.d_in}",
            f"pass d_in {reader.d_in}",
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
            "pass a smaller --widths, or collect more documents or a larger --hidden-share",
        )
    size = options.batch_tokens if config.experts is None else max(256, min(options.batch_tokens, tokens // 16))
    steps = n_batches if config.experts is None else max(1, tokens * options.epochs // size)
    sample = _sample(reader, config, options.sample)
    return _Gathered(Training.start(config, sample, options, steps=steps, tokens=tokens * options.epochs), size)


def _sample(reader: ActivationReader, config: SaeConfig, n_rows: int) -> Tensor:
    """Read the first activations of a shuffled pass, shape (about `n_rows` at most, d_in)."""
    return torch.cat(_gather((select(batch, config).float() for batch in reader.batches()), n_rows))


def _gather(batches: Iterable[Tensor], n_rows: int) -> list[Tensor]:
    """Take batches until they have a number of rows."""
    taken: list[Tensor] = []
    for batch in batches:
        taken.append(batch)
        if sum(map(len, taken)) >= n_rows:
            break
    return taken


def _state(reader: ActivationReader, options: TrainOptions) -> dict[str, object]:
    """Describe what must be the same for a training to be resumed from a checkpoint."""
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
            "SAEs trained together need one width of activations", f"they have {sorted(widths)}", "train each width apart"
        )
    (d_in,) = widths
    asked: deque[tuple[int, Tensor, HostNumber]] = deque()
    for number, batch in enumerate(batches):
        if batch.ndim != 2 or batch.shape[1] != d_in:
            raise MoeProbeError(
                f"batch {number} has the shape {tuple(batch.shape)}",
                f"(tokens, {d_in}) is expected",
                f"pass SAEs of d_in {batch.shape[-1]}",
            )
        suspect = HostNumber()
        suspect.send((~torch.isfinite(batch.sum(dtype=torch.float32))).sum())
        asked.append((number, batch, suspect))
        # a GPU answers while it works on the batch, and is asked for the answer one batch later: it never waits
        while len(asked) > batch.is_cuda:
            _refuse_infinite(*asked.popleft())
        yield batch.float()
    for late in asked:
        _refuse_infinite(*late)


def _refuse_infinite(number: int, batch: Tensor, suspect: HostNumber) -> None:
    if suspect.read() and not torch.isfinite(batch).all():  # the sum alone may be infinite
        row = int((~torch.isfinite(batch)).any(1).nonzero()[0])
        raise MoeProbeError(
            f"row {row} of batch {number} has NaN or infinite activations",
            "one such row would spoil every latent",
            "omit its document",
        )


def _step(run: Training, batch: Tensor, say: OnProgress) -> None:
    run.step(batch)
    if run.progress.step % SAY_EVERY == 0 or run.progress.step == run.steps:
        say(run.progress)


def _finish(run: Training, sample: Tensor) -> None:
    run.sae.eval()
    run.sae.low_precision = False
    if run.sae.uses_threshold:
        run.sae.fix_threshold(sample.to(run.sae.W_dec.device))  # type: ignore[operator]
    run.sae.cpu()
