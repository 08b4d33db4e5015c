"""How SAEs are trained, and what an SAE's folder records of it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes
    ----------
    steps : int
        Batches, where they come as plain arrays; the schedule is laid out over them.
    epochs : int
        Passes over the activations, where they are read from a trace.
    batch_tokens : int
        Tokens of a step, where they are read from a trace.
    learning_rate : float
        Peak, after a warm-up over the first twentieth of the steps; falls linearly to 0 over the last fifth. Short runs
        on few tokens want far more than the 1e-4 of long ones (measured: 3e-3 at 10^5 to 10^6 tokens).
    dead_after : int
        Tokens without firing after which a latent counts as dead; at most a twentieth of what the SAE is
        trained on. Counted in the tokens that the SAE sees: one of a rare expert is as patient as others.
    aux : float
        Weight of the auxiliary loss by which dead latents learn the residual (AuxK, Gao et al. 2024,
        arXiv:2406.04093, appendix A.2: 1/32).
    clip : float
        Largest norm of the gradient.
    sample : int
        Rows of the first batches from which mean and scale are taken.
    device : str
        ``auto`` takes the first GPU if there is one.
    precision : {"auto", "float32", "bfloat16"}
        Of the encoder's product: auto is bfloat16 on a GPU and float32 on a CPU.
    """

    steps: int = 1000
    epochs: int = 4
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    dead_after: int = 100_000
    aux: float = 1 / 32
    clip: float = 1.0
    sample: int = 8192
    device: str = "auto"
    precision: str = "auto"

    def torch_device(self) -> torch.device:
        """Return the device to train on; ``auto`` is the first GPU where there is one, else the CPU."""
        import torch

        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TrainingRecord(dict[str, Any]):
    """What an SAE's folder records of its training, by name; empty for an SAE that was trained elsewhere.

    Records of SAEs trained here have ``tokens``, ``steps``, ``seconds``, ``epochs``, ``batch_tokens``, ``learning_rate``,
    ``fvu_last_batch``, ``held_out_share``, ``held_out_seed`` and ``corpus_hash``.
    """

    #: Fields of `TrainOptions` that a record holds.
    OPTIONS = ("epochs", "batch_tokens", "learning_rate")

    @property
    def assumed(self) -> tuple[str, ...]:
        """Fields of `options` that the record lacks: they have the defaults of `TrainOptions`."""
        return tuple(name for name in self.OPTIONS if name not in self)

    @cached_property
    def options(self) -> TrainOptions:
        """Options with which to train another SAE as this one was."""
        return TrainOptions(**{name: type(getattr(TrainOptions, name))(self[name]) for name in self.OPTIONS if name in self})

    @property
    def held_out_seed(self) -> int:
        """Seed of the split into training and held-out documents (0 where the record has none)."""
        return int(self.get("held_out_seed", 0))
