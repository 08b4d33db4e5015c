"""What to train in a run. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.sae.config import SaeConfig, TrainOptions
from moe_probe.sae.settings import SaeSettings


@dataclass(frozen=True)
class TrainRequest:
    """Which SAEs to train in a run, and what to do with those that it has.

    Attributes
    ----------
    settings : SaeSettings
    seed : int
        Of the SAEs, of the order of the activations, and of the held-out documents.
    device : str
        As `TrainOptions`.
    mode : {"new", "resume", "force"}
        What to do with SAEs that exist: refuse, keep them and train the missing ones (from the last checkpoint where
        there is one), or train all anew.
    """

    settings: SaeSettings
    seed: int = SaeConfig.model_fields["seed"].default
    device: str = TrainOptions.device
    mode: str = "new"

    @property
    def options(self) -> TrainOptions:
        """Options of the training."""
        settings = self.settings
        return TrainOptions(
            epochs=settings.epochs,
            batch_tokens=settings.sae_batch_tokens,
            learning_rate=settings.learning_rate,
            device=self.device,
            precision=settings.precision,
        )
