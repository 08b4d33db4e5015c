"""One SAE while it is trained: its optimiser, its schedule, and the computation of a step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moe_probe.sae.architectures.base import Sae, Sparse
from moe_probe.sae.architectures.ops import decode, encode_chosen
from moe_probe.sae.architectures.registry import make_sae
from moe_probe.sae.config import SaeConfig, TrainOptions
from moe_probe.sae.training.dead import Idle
from moe_probe.sae.training.update import adam_of, update

#: The auxiliary loss is formed on one token in so many, or fewer: dead latents come back as well, at an eighth of the cost.
_AUX_EVERY = 8
#: Steps between two measurements of the progress.
SAY_EVERY = 50


@dataclass
class Progress:
    """State of one SAE while it is trained.

    Attributes
    ----------
    config : SaeConfig
    steps : int
        Steps of the whole training.
    step, tokens : int
        Steps and tokens so far.
    fvu : float
        Fraction of variance unexplained, of the last batch that was measured.
    l0 : float
        Active latents per token of that batch.
    dead : float
        Share of latents that have not fired for long.
    """

    config: SaeConfig
    step: int = 0
    steps: int = 0
    tokens: int = 0
    fvu: float = float("nan")
    l0: float = float("nan")
    dead: float = 0.0


@dataclass
class Training:
    """One SAE with its optimiser and the tokens since each latent last fired."""

    sae: Sae
    options: TrainOptions
    #: Steps that the schedule is laid out over.
    steps: int
    #: Tokens without firing that make a latent dead.
    patience: int
    optimizer: torch.optim.Adam = field(init=False)
    idle: Idle = field(init=False)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        """Make the optimiser and the counters."""
        self.optimizer = adam_of(self.sae)
        self.idle = Idle(self.sae.config.d_sae, patience=self.patience, device=self.sae.W_dec.device)
        self.progress = Progress(self.sae.config, steps=self.steps)

    @classmethod
    def start(cls, config: SaeConfig, sample: Tensor, options: TrainOptions, *, steps: int, tokens: int) -> Training:
        """Begin a training: the SAE's mean and scale are taken from a sample of the activations.

        Parameters
        ----------
        config : SaeConfig
        sample : Tensor, shape (n, d_in)
        options : TrainOptions
        steps : int
            Steps that the schedule is laid out over.
        tokens : int
            Tokens of the whole training.

        Returns
        -------
        Training

        Raises
        ------
        MoeProbeError
            When the activations do not vary, or the architecture is not known.
        """
        sae = make_sae(config)
        sae.start_from(sample)
        sae.to(options.torch_device())
        sae.low_precision = options.precision == "bfloat16" or (options.precision == "auto" and sae.W_dec.is_cuda)
        sae.train()
        return cls(sae, options, steps=steps, patience=max(1, min(options.dead_after, tokens // 20)))

    def rate(self, step: int) -> float:
        """Learning rate of a step: warm-up, plateau, linear decay to 0."""
        warm, cool = max(1, self.steps // 20), max(1, self.steps // 5)
        return self.options.learning_rate * min((step + 1) / warm, 1.0, max(self.steps - step, 0) / cool)

    def step(self, batch: Tensor) -> None:
        """One step on activations as the model has them, shape (n, d_in)."""
        sae, options, progress = self.sae, self.options, self.progress
        x = sae.normalise(batch.to(sae.W_dec.device, non_blocking=True))
        dead = self.idle.dead(progress.tokens) if options.aux else None
        latents = sae.choose(x)
        progress.tokens += len(x)
        # noted at once: the number of dead latents is on the host before the device has ended this step
        self.idle.note(latents.values.detach(), latents.indices, seen=progress.tokens)
        loss, found = sae.loss(x, latents)
        if dead is not None:
            loss = loss + options.aux * _auxiliary(sae, x, found.detach(), dead)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        update(sae, self.optimizer, rate=self.rate(progress.step), clip=options.clip)
        progress.step += 1
        if progress.step % SAY_EVERY == 0 or progress.step in (1, self.steps):
            self._measure(x, found.detach(), latents)

    @torch.no_grad()
    def _measure(self, x: Tensor, found: Tensor, latents: Sparse) -> None:
        progress = self.progress
        progress.fvu = float((x - found).square().sum() / (x - x.mean(0)).square().sum().clamp_min(1e-8))
        progress.l0 = float((latents.values > 0).sum() / len(x))
        progress.dead = float((self.idle.tokens > self.patience).float().mean())


def _auxiliary(sae: Sae, x: Tensor, found: Tensor, dead: Tensor) -> Tensor:
    """Error with which the dead latents of largest pre-activation reconstruct the residual, over the residual's own.

    AuxK: Gao et al. 2024, arXiv:2406.04093, appendix A.2.
    """
    config = sae.config
    slots = min(config.d_sae, max(1, config.d_in // 2))
    # at most as many pairs as the loss itself has
    every = min(len(x), max(_AUX_EVERY, -(-slots // config.k)))
    x, residual = x[::every], (x - found)[::every]
    with torch.no_grad():
        if x.device.type == "cpu":  # few rows are cheaper than all: their number is at hand
            rows = dead.nonzero()[:, 0]
            pre = (x - sae.b_dec) @ sae.W_enc[rows].T + sae.b_enc[rows]
            values, columns = pre.topk(min(len(rows), slots), dim=1, sorted=False)
            indices = rows[columns]
        else:
            values, indices = sae.largest(x, slots, among=dead)
    values = encode_chosen(x - sae.b_dec.detach(), (sae.W_enc, sae.b_enc), values, indices)
    guess = decode(values.relu(), indices, sae.W_dec)
    return (residual - guess).square().sum() / residual.square().sum().clamp_min(1e-8)
