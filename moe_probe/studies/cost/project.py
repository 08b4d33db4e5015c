"""Projections: each step as a fraction of what training the model cost, and how that moves with its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import UsageError
from moe_probe.core.flops import sae_encode_flops, sae_train_flops, training_flops

if TYPE_CHECKING:
    import pandas as pd

#: Tokens a feature that explaining and scoring it by a language model take, with what it answers: 963 + 30 and five calls of
#: detection at 778 + 12 (EleutherAI 2024, open source automated interpretability, https://blog.eleuther.ai/autointerp/).
EXPLAIN_TOKENS, SCORE_TOKENS = 993, 5 * 790


@dataclass(frozen=True)
class Projection:
    """Operations of every step for one model.

    Attributes
    ----------
    training : float
        Of the model itself, N; NaN where its training tokens are not known.
    capture, sae, labelling : float
        Once: forward passes that are recorded, training of all SAEs, explaining and scoring features by a language model.
    per_token_forward, per_token_encode : float
        On every output: the model's own forward, and encoding with all SAEs.
    activation_bytes : float
        Of the activations, where they are kept in two bytes a number.
    """

    training: float
    capture: float
    sae: float
    labelling: float
    per_token_forward: float
    per_token_encode: float
    activation_bytes: float

    @property
    def once(self) -> float:
        """Operations that are paid once."""
        return self.capture + self.sae + self.labelling

    def fractions(self) -> dict[str, float]:
        """Each step that is paid once as a fraction of training, and the overhead of an output."""
        return {
            "capture": self.capture / self.training,
            "sae": self.sae / self.training,
            "labelling": self.labelling / self.training,
            "once": self.once / self.training,
            "per output": self.per_token_encode / self.per_token_forward,
        }


def project(
    *,
    active: float,
    tokens: float | None,
    d_model: int,
    layers: int = 1,
    width: int = 32_768,
    active_latents: float = 32,
    sae_tokens: float = 5e8,
    dense: bool = False,
    labelled: float | None = None,
    labeller: float = 70e9,
) -> Projection:
    """Count every step for a model of given size.

    Parameters
    ----------
    active : float
        Parameters that a token passes through.
    tokens : float, optional
        Training tokens of the model; None where not known.
    d_model : int
        Width of the activations that SAEs read.
    layers : int
        SAEs, one a layer.
    width, active_latents : int, float
    sae_tokens : float
        Tokens that SAEs are trained on.
    dense : bool
        Whether SAEs are trained with dense products.
    labelled : float, optional
        Features that a language model explains and scores; all of them when left out.
    labeller : float
        Parameters of that language model.

    Raises
    ------
    UsageError
        When a size is not positive.
    """
    sizes = {"active": active, "d-model": d_model, "layers": layers, "width": width, "sae-tokens": sae_tokens}
    for name, value in sizes.items():
        if not value > 0:
            raise UsageError(f"--{name} {value:g} is no size", "it must be above 0", f"--{name} of the model")
    n = layers * width if labelled is None else labelled
    return Projection(
        training=training_flops(active, tokens) if tokens else float("nan"),
        capture=2.0 * active * sae_tokens,
        sae=layers * sae_tokens * sae_train_flops(d_model, width, active_latents, dense=dense, batch_tokens=131_072),
        labelling=2.0 * labeller * n * (EXPLAIN_TOKENS + SCORE_TOKENS),
        per_token_forward=2.0 * active,
        per_token_encode=layers * sae_encode_flops(d_model, width),
        activation_bytes=2.0 * d_model * layers * sae_tokens,
    )


#: How the dictionary may grow as models do.
RULES = ("width fixed", "width as d_model", "width as parameters")


def growth(
    *,
    sizes: tuple[float, ...] = (1e9, 1e10, 1e11, 1e12),
    tokens_per_parameter: float = 20.0,
    sae_tokens: float = 4e9,
    every_layer: bool = True,
) -> pd.DataFrame:
    """Is it a linear tax? Cost of SAEs as a fraction of training, for dense-equivalent models of growing size.

    Models have ``12 L d^2`` parameters with ``L = d / 128``, and are trained on a fixed number of tokens a parameter
    (20: Hoffmann et al. 2022, arXiv:2203.15556). SAEs read every layer, or one.

    Returns
    -------
    pandas.DataFrame
        ``rule, parameters, d_model, layers, width, sae_fraction, capture_fraction, exponent`` (slope of the SAE's cost over
        the cost of training, both in logarithms: 1 is a tax at a fixed rate, below 1 a falling rate).
    """
    import pandas as pd

    rows = []
    for rule in RULES:
        for parameters in sizes:
            d = round((parameters * 128 / 12) ** (1 / 3))
            layers = max(1, round(d / 128)) if every_layer else 1
            width = {
                "width fixed": 32_768,
                "width as d_model": 16 * d,
                "width as parameters": round(32_768 * parameters / sizes[0]),
            }
            found = project(
                active=parameters,
                tokens=tokens_per_parameter * parameters,
                d_model=d,
                layers=layers,
                width=width[rule],
                sae_tokens=sae_tokens,
                labelled=0,
            )
            rows.append(
                {
                    "rule": rule,
                    "parameters": parameters,
                    "d_model": d,
                    "layers": layers,
                    "width": width[rule],
                    "sae_flops": found.sae,
                    "training_flops": found.training,
                    "sae_fraction": found.sae / found.training,
                    "capture_fraction": found.capture / found.training,
                }
            )
    table = pd.DataFrame(rows)
    slopes = {
        rule: float(np.polyfit(np.log(part["training_flops"]), np.log(part["sae_flops"]), 1)[0])
        for rule, part in table.groupby("rule")
    }
    return table.assign(exponent=table["rule"].map(slopes)).drop(columns=["sae_flops", "training_flops"])


def depth_first_fraction(share: float, *, wide: int, root: int, small: int, nodes: int, d_in: int) -> float:
    """Encoder operations of going depth first over those of one wide dictionary on all tokens.

    A root dictionary reads all tokens; `nodes` small ones each read the share of tokens on which their parent fires.

    Parameters
    ----------
    share : float
        Mean share of tokens on which a parent fires.
    wide, root, small : int
        Widths: of the wide dictionary, the root and the small ones.
    """
    depth = sae_encode_flops(d_in, root) + nodes * share * sae_encode_flops(d_in, small)
    return depth / sae_encode_flops(d_in, wide)


def break_even_nodes(share: float, *, wide: int, root: int, small: int) -> float:
    """Small dictionaries that can be trained until depth first costs as much as breadth first."""
    return (wide - root) / (share * small)
