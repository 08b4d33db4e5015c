"""What an SAE's folder records of its training."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from moe_probe.sae.config import TrainOptions


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
