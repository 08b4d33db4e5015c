"""Configuration of an SAE (shape, sparsity, what it is trained on) and options of its training. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from moe_probe.core.sites import SaeHook

if TYPE_CHECKING:
    import torch


class SaeConfig(BaseModel):
    """One sparse autoencoder.

    ``x ≈ W_dec f(x) + b_dec``, where few of the ``d_sae`` non-negative latents f are active.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "topk"
    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    #: Active latents per token (topk, batchtopk, matryoshka; others report how far they are from it).
    k: int = Field(default=16, ge=1)
    #: Weight of the sparsity term (standard: L1; jumprelu: L0).
    sparsity: float = Field(default=1e-3, ge=0)
    #: Widths of the nested dictionaries (matryoshka); the last is d_sae.
    nested: tuple[int, ...] = ()
    #: Name of the activation site that it reads (`moe_probe.core.sites.ActivationSite`).
    hook: SaeHook = "router_input"
    layer: int = 0
    #: Experts whose tokens it is trained on; None for all tokens.
    experts: tuple[int, ...] | None = None
    #: Fingerprint of the routers and experts whose activations these are; "" when unknown.
    model_fingerprint: str = ""
    model_id: str = ""
    seed: int = 0


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
        Tokens without firing after which a latent counts as dead; at most a twentieth of the tokens that the SAE is
        trained on. For an SAE of some experts, only their tokens count.
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
        """Return the device to train on: ``auto`` is the first GPU where there is one, else the CPU."""
        import torch

        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
