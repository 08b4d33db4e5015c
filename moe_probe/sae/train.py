"""Training: several SAEs in one pass over one stream of activations, seeded, with dead latents brought back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moe_probe.errors import MoeProbeError
from moe_probe.sae.base import Sae, Sparse
from moe_probe.sae.config import SaeConfig
from moe_probe.sae.ops import decode
from moe_probe.sae.registry import make_sae


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes
    ----------
    steps : int
        Batches; the schedule is laid out over them.
    learning_rate : float
        Peak, after a warm-up over the first twentieth of the steps; falls linearly to 0 over the last fifth. Short runs
        on few tokens want far more than the 1e-4 of long ones (measured: 3e-3 at 10^5 to 10^6 tokens).
    dead_after : int
        Tokens without firing after which a latent counts as dead.
    aux : float
        Weight of the auxiliary loss by which dead latents learn the residual (AuxK, Gao et al. 2024,
        arXiv:2406.04093, appendix A.2: 1/32).
    clip : float
        Largest norm of the gradient.
    sample : int
        Rows of the first batches from which mean and scale are taken.
    """

    steps: int = 1000
    learning_rate: float = 3e-3
    dead_after: int = 100_000
    aux: float = 1 / 32
    clip: float = 1.0
    sample: int = 8192


@dataclass
class Progress:
    """State of one SAE while it is trained; ``fvu`` and ``l0`` are of the last batch."""

    config: SaeConfig
    step: int = 0
    fvu: float = float("nan")
    l0: float = float("nan")
    dead: float = 0.0


@dataclass
class _Run:
    """One SAE with its optimiser and the tokens since each latent last fired."""

    sae: Sae
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    idle: Tensor
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(self.sae.config)


def train_saes(
    batches: Iterable[Tensor], configs: Sequence[SaeConfig], *, options: TrainOptions | None = None,
    say: Callable[[Progress], None] = lambda progress: None,
) -> list[Sae]:
    """Train SAEs of any widths and architectures on the same batches.

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
    runs = [_start(config, torch.cat(first), options) for config in configs]
    last: Tensor | None = None
    for step, batch in enumerate(_replayed(first, stream)):
        if step == options.steps:
            break
        last = batch
        for run in runs:
            _step(run, batch, options)
            if step % 50 == 49 or step + 1 == options.steps:
                say(run.progress)
    for run in runs:
        run.sae.eval()
        if run.sae.uses_threshold and last is not None:
            run.sae.fix_threshold(last)  # type: ignore[operator]
    return [run.sae for run in runs]


def _checked(batches: Iterable[Tensor], configs: Sequence[SaeConfig]) -> Iterator[Tensor]:
    widths = {c.d_in for c in configs}
    if len(widths) != 1:
        raise MoeProbeError("SAEs trained together need one width of activations", f"they have {sorted(widths)}",
                            "one call per width")
    (d_in,) = widths
    for number, batch in enumerate(batches):
        if batch.ndim != 2 or batch.shape[1] != d_in:
            raise MoeProbeError(f"batch {number} has the shape {tuple(batch.shape)}", f"(tokens, {d_in}) is expected",
                                f"SAEs of d_in {batch.shape[-1]}")
        if not torch.isfinite(batch).all():
            row = int((~torch.isfinite(batch)).any(1).nonzero()[0])
            raise MoeProbeError(f"row {row} of batch {number} holds NaN or infinite activations",
                                "one such row would spoil every latent", "leave its document out")
        yield batch.float()


def _first(stream: Iterator[Tensor], rows: int) -> list[Tensor]:
    found: list[Tensor] = []
    for batch in stream:
        found.append(batch)
        if sum(len(b) for b in found) >= rows:
            break
    if not found:
        raise MoeProbeError("there are no activations to train on", "the stream is empty",
                            "collect with --keep hidden, or widen the choice of tokens")
    return found


def _replayed(first: list[Tensor], stream: Iterator[Tensor]) -> Iterator[Tensor]:
    yield from first
    yield from stream


def _start(config: SaeConfig, sample: Tensor, options: TrainOptions) -> _Run:
    sae = make_sae(config)
    sae.start_from(sample)
    sae.train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=options.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
    warm, cool = max(1, options.steps // 20), max(1, options.steps // 5)

    def factor(step: int) -> float:
        return min((step + 1) / warm, 1.0, max(options.steps - step, 0) / cool)

    return _Run(sae, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
                torch.zeros(config.d_sae, dtype=torch.long))


def _step(run: _Run, batch: Tensor, options: TrainOptions) -> None:
    sae = run.sae
    x = sae.normalise(batch)
    latents = sae.choose(x)
    loss, found = sae.loss(x, latents)
    dead = run.idle > options.dead_after
    if options.aux and bool(dead.any()):
        loss = loss + options.aux * _auxiliary(sae, x, found.detach(), dead)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    sae.remove_parallel_gradient()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), options.clip)
    run.optimizer.step()
    run.schedule.step()
    sae.keep_unit_norm()
    _note(run, x, found, latents, dead)


def _auxiliary(sae: Sae, x: Tensor, found: Tensor, dead: Tensor) -> Tensor:
    """Error with which the dead latents of largest pre-activation explain the residual, over the residual's own."""
    rows = dead.nonzero()[:, 0]
    residual = x - found
    pre = (x - sae.b_dec.detach()) @ sae.W_enc[rows].T + sae.b_enc[rows]
    values, places = pre.topk(min(len(rows), max(1, sae.config.d_in // 2)), dim=1)
    guess = decode(values.relu(), rows[places], sae.W_dec)
    return (residual - guess).square().sum() / residual.square().sum().clamp_min(1e-8)


@torch.no_grad()
def _note(run: _Run, x: Tensor, found: Tensor, latents: Sparse, dead: Tensor) -> None:
    active = latents.values > 0
    fired = torch.zeros(len(run.idle), dtype=torch.bool)
    fired[latents.indices[active]] = True
    run.idle += len(x)
    run.idle[fired] = 0
    progress = run.progress
    progress.step += 1
    if progress.step % 50 == 0 or progress.step == 1:
        progress.fvu = float((x - found).square().sum() / (x - x.mean(0)).square().sum().clamp_min(1e-8))
        progress.l0 = float(active.sum() / len(x))
        progress.dead = float(dead.float().mean())
