"""Floating-point operations, counted by hand: a multiplication with its addition is two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_probe.core.errors import MoeProbeError


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with mixture-of-experts blocks that decide its operations.

    Attributes
    ----------
    d_model, n_layers, n_heads, n_kv_heads, head_dim, vocabulary : int
    n_experts, top_k, d_expert : int
        Experts of a layer, experts of a token, and an expert's inner width.
    d_shared : int
        Inner width of what every token passes through beside the experts (0: nothing).
    gated : bool
        Whether an expert multiplies two projections (three matrices) or has one (two matrices).
    n_dense_layers, d_dense : int
        Layers without experts, and their inner width.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocabulary: int
    n_experts: int
    top_k: int
    d_expert: int
    d_shared: int = 0
    gated: bool = True
    n_dense_layers: int = 0
    d_dense: int = 0

    def forward_flops(self, length: int, *, logits: bool = True) -> float:
        """Count the operations of a token in a forward pass over a window of `length` tokens.

        Matrix products alone, as Kaplan et al. 2020 count (arXiv:2001.08361, table 1), but with attention over the whole
        window (kernels that skip the causal half do half of that part).

        Parameters
        ----------
        length : int
            Tokens of the window.
        logits : bool
            Whether predictions are formed; collecting does not need them.

        Returns
        -------
        float
        """
        d, heads, kv = self.d_model, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = 2 * d * (2 * heads + 2 * kv) + 4 * length * heads
        matrices = 3 if self.gated else 2
        experts = 2 * d * self.n_experts + 2 * matrices * d * (self.top_k * self.d_expert + self.d_shared)
        dense = 2 * matrices * d * self.d_dense
        sparse_layers = self.n_layers - self.n_dense_layers
        return float(
            self.n_layers * attention
            + sparse_layers * experts
            + self.n_dense_layers * dense
            + (2 * d * self.vocabulary if logits else 0)
        )


def shape_of(config: Any) -> ModelShape:
    """Read a model's sizes off its transformers configuration.

    Raises
    ------
    MoeProbeError
        When the configuration does not name them in a way that is known.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def size(*names: str, default: int | None = None) -> int:
        for name in names:
            if isinstance(value := getattr(text, name, None), int):
                return value
        if default is None:
            raise MoeProbeError(
                f"the configuration of {getattr(text, 'model_type', 'this model')} names no {names[0]}",
                "operations cannot be counted",
                "name --params, --active and --tokens",
            )
        return default

    d, heads = size("hidden_size"), size("num_attention_heads")
    inner = size("moe_intermediate_size", "intermediate_size")
    shared = size("shared_expert_intermediate_size", default=0) or size("n_shared_experts", default=0) * inner
    layers, dense = size("num_hidden_layers"), size("first_k_dense_replace", default=0)
    return ModelShape(
        d_model=d,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=size("num_key_value_heads", default=heads),
        head_dim=size("head_dim", default=d // heads),
        vocabulary=size("vocab_size"),
        n_experts=size("num_experts", "num_local_experts", "n_routed_experts"),
        top_k=size("num_experts_per_tok", "num_experts_per_token", "moe_top_k"),
        d_expert=inner,
        d_shared=shared,
        n_dense_layers=dense,
        d_dense=size("intermediate_size") if dense else 0,
    )


def training_flops(active_parameters: float, tokens: float) -> float:
    """Count the operations of pre-training, ``6 x active parameters x tokens``.

    Kaplan et al. 2020, arXiv:2001.08361, section 2.1.

    Parameters
    ----------
    active_parameters : float
        Parameters that a token passes through.
    tokens : float

    Returns
    -------
    float
    """
    return 6.0 * active_parameters * tokens


def sae_encode_flops(d_in: int, width: int) -> float:
    """Count the operations of encoding a token: the encoder's product; choosing the largest takes comparisons, not operations.

    Parameters
    ----------
    d_in, width : int
        Sizes of the activation and of the SAE.

    Returns
    -------
    float
    """
    return 2.0 * d_in * width


def sae_decode_flops(d_in: int, active: float) -> float:
    """Count the operations of decoding a token from its active latents.

    Parameters
    ----------
    d_in : int
        Size of the activation.
    active : float
        Active latents per token.

    Returns
    -------
    float
    """
    return 2.0 * d_in * active


def sae_train_flops(d_in: int, width: int, active: float, *, dense: bool = False, batch_tokens: int = 2048) -> float:
    """Count the operations of training an SAE on a token.

    ``12 d M`` where all products are dense (encoder and decoder, forward and twice backward). This package's trainer forms
    the encoder's product densely (``2 d M``) and all else over active latents: decoding, the gradient of the latents, and
    those of the decoder's and the encoder's rows (``8 d k``); Adam adds about 12 operations per parameter and step. Gradients
    over active latents: Gao et al. 2024, arXiv:2406.04093, section 2 and appendix D.

    Parameters
    ----------
    d_in, width : int
        Sizes of the activation and of the SAE.
    active : float
        Active latents per token (k, or L0).
    dense : bool
        Whether all products are dense.
    batch_tokens : int
        Tokens per step.

    Returns
    -------
    float
    """
    if dense:
        return 12.0 * d_in * width
    return 2.0 * d_in * width + 8.0 * d_in * active + 12.0 * 2 * d_in * width / batch_tokens


def match_operations(n_tokens: float, chosen: float, active: float) -> float:
    """Count the additions of matching: one per token, chosen expert and active latent.

    Parameters
    ----------
    n_tokens : float
    chosen : float
        Experts per token.
    active : float
        Active latents per token.

    Returns
    -------
    float
    """
    return n_tokens * chosen * active
