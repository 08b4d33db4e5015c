"""What an SAE is: shape, sparsity, and what it was trained on. Pure data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from moe_probe.core.sites import SaeHook


class SaeConfig(BaseModel):
    """One sparse autoencoder.

    ``x ≈ W_dec f(x) + b_dec`` with at most a few of ``d_sae`` non-negative latents f active.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "topk"
    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    #: Active latents a token (topk, batchtopk, matryoshka; the target of the others' reports).
    k: int = Field(default=16, ge=1)
    #: Weight of the sparsity term (standard: L1; jumprelu: L0).
    sparsity: float = Field(default=1e-3, ge=0)
    #: Widths of the nested dictionaries, the last is d_sae (matryoshka).
    nested: tuple[int, ...] = ()
    #: Name of the activation site that it reads (`moe_probe.core.sites.ActivationSite`).
    hook: SaeHook = "router_input"
    layer: int = 0
    #: Only tokens that were routed to one of these experts; all tokens where it is None.
    experts: tuple[int, ...] | None = None
    #: Fingerprint of the routers and experts whose activations these are; "" when unknown.
    model_fingerprint: str = ""
    model_id: str = ""
    seed: int = 0
