"""Projections: each step as a fraction of what training the model cost, and how that fraction moves with its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_probe.core.errors import UsageError
from moe_probe.core.flops import sae_encode_flops, sae_train_flops, training_flops

if TYPE_CHECKING:
    import pandas as pd

#: Tokens a feature that explaining and scoring it by a language model take, with what it answers: 963 + 30 and five calls of
#: detection at 778 + 12 (EleutherAI 2024, open source automated interpretability, https://blog.eleuther.ai/autointerp/).
EXPLAIN_TOKENS, SCORE_TOKENS = 993, 5 * 790
#: Parameters of a language model that labels features.
LABELLER = 70e9


@dataclass(frozen=True)
class SaePlan:
    """SAEs to train and to label.

    Attributes
    ----------
    layers : int
        SAEs, one per layer.
    width : int
        Latents of each.
    active_latents : float
        Latents active on a token (k, or L0).
    tokens : float
        Tokens that each is trained on.
    dense : bool
        Whether all products of training are dense.
    labelled : float or None
        Features that a language model explains and scores; None for all of them.
    labeller : float
        Parameters of that language model.
    """

    layers: int = 1
    width: int = 32_768
    active_latents: float = 32
    tokens: float = 5e8
    dense: bool = False
    labelled: float | None = None
    labeller: float = LABELLER


@dataclass(frozen=True)
class Projection:
    """Operations of every step for one model.

    Attributes
    ----------
    training : float
        Of the model itself; NaN where its training tokens are not known.
    capture, sae, labelling : float
        Paid once: recorded forward passes, training of all SAEs, explaining and scoring features by a language model.
    per_token_forward, per_token_encode : float
        Paid for every token of output: the model's own forward pass, and encoding with all SAEs.
    activation_bytes : float
        Bytes of the activations, where they are kept in two bytes a number.
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
        steps = {name: getattr(self, name) / self.training for name in ("capture", "sae", "labelling", "once")}
        return steps | {"per output": self.per_token_encode / self.per_token_forward}


def project(active: float, d_model: int, *, tokens: float | None, saes: SaePlan | None = None) -> Projection:
    """Count every step for a model of given size.

    Parameters
    ----------
    active : float
        Parameters that a token passes through.
    d_model : int
        Width of the activations that SAEs read.
    tokens : float or None
        Training tokens of the model; None where they are not known.
    saes : SaePlan, optional

    Returns
    -------
    Projection

    Raises
    ------
    UsageError
        When a size is not positive.
    """
    saes = saes or SaePlan()
    sizes = {"active": active, "d-model": d_model, "layers": saes.layers, "width": saes.width, "sae-tokens": saes.tokens}
    for name, value in sizes.items():
        if not value > 0:
            raise UsageError(f"--{name} {value:g} is invalid", "it must be above 0", f"--{name} of the model")
    labelled = saes.layers * saes.width if saes.labelled is None else saes.labelled
    per_token = sae_train_flops(d_model, saes.width, saes.active_latents, dense=saes.dense, batch_tokens=131_072)
    return Projection(
        training=training_flops(active, tokens) if tokens else float("nan"),
        capture=2.0 * active * saes.tokens,
        sae=saes.layers * saes.tokens * per_token,
        labelling=2.0 * saes.labeller * labelled * (EXPLAIN_TOKENS + SCORE_TOKENS),
        per_token_forward=2.0 * active,
        per_token_encode=saes.layers * sae_encode_flops(d_model, saes.width),
        activation_bytes=2.0 * d_model * saes.layers * saes.tokens,
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
    """Project the cost of SAEs as a fraction of training, for dense-equivalent models of growing size.

    Is it a linear tax? Models have ``12 L d^2`` parameters with ``L = d / 128``, and are trained on a fixed number of tokens
    a parameter (20: Hoffmann et al. 2022, arXiv:2203.15556). SAEs read every layer, or one.

    Parameters
    ----------
    sizes : tuple of float
        Parameters of the models.
    tokens_per_parameter : float
        Training tokens of a model over its parameters.
    sae_tokens : float
        Tokens that SAEs are trained on.
    every_layer : bool
        One SAE per layer; else one in all.

    Returns
    -------
    pandas.DataFrame
        ``rule, parameters, d_model, layers, width, sae_fraction, capture_fraction, exponent`` (slope of the SAE's cost over
        the cost of training, both in logarithms: 1 is a tax at a fixed rate, below 1 a falling rate).
    """
    import numpy as np
    import pandas as pd

    rows = []
    for rule in RULES:
        for parameters in sizes:
            d = round((parameters * 128 / 12) ** (1 / 3))
            layers = max(1, round(d / 128)) if every_layer else 1
            by_parameters = round(32_768 * parameters / sizes[0])
            width = dict(zip(RULES, (32_768, 16 * d, by_parameters), strict=True))[rule]
            plan = SaePlan(layers=layers, width=width, tokens=sae_tokens, labelled=0)
            cost = project(parameters, d, tokens=tokens_per_parameter * parameters, saes=plan)
            rows.append(
                {
                    "rule": rule,
                    "parameters": parameters,
                    "d_model": d,
                    "layers": layers,
                    "width": width,
                    "sae_flops": cost.sae,
                    "training_flops": cost.training,
                    "sae_fraction": cost.sae / cost.training,
                    "capture_fraction": cost.capture / cost.training,
                }
            )
    table = pd.DataFrame(rows)
    slopes = {
        rule: float(np.polyfit(np.log(part["training_flops"]), np.log(part["sae_flops"]), 1)[0])
        for rule, part in table.groupby("rule")
    }
    return table.assign(exponent=table["rule"].map(slopes)).drop(columns=["sae_flops", "training_flops"])


def break_even_nodes(share: float, *, wide: int, root: int, small: int) -> float:
    """Count the small dictionaries at which depth first takes as many encoder operations as one wide dictionary.

    A root dictionary reads all tokens; each small one reads the tokens on which its parent fires.

    Parameters
    ----------
    share : float
        Mean share of tokens on which a parent fires.
    wide, root, small : int
        Latents of the wide dictionary, the root and the small ones.

    Returns
    -------
    float
        ``(wide - root) / (share * small)``.
    """
    return (wide - root) / (share * small)
