"""Tables of costs: the steps of a run, and the same steps for published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.generation import save_together
from moe_probe.core.results import Result
from moe_probe.studies.cost.presets import PRESETS
from moe_probe.studies.cost.project import SaePlan, growth, project

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.rundir import RunDirectory

#: SAEs that are projected for published models: their latents, and the tokens that they are trained on.
_WIDTH, _SAE_TOKENS = 131_072, 5e8
_SOURCES = (
    "Kaplan et al. 2020, operations of training and inference, arXiv:2001.08361",
    "Gao et al. 2024, training SAEs over active latents, arXiv:2406.04093",
    "Juang et al. 2024, tokens of explaining and scoring a feature, https://blog.eleuther.ai/autointerp/",
    "Lieberum et al. 2024, cost of published SAEs (Gemma Scope), arXiv:2408.05147",
)
_STEPS = (
    "Floating-point operations are counted by hand (a multiplication with its addition is two) and agree with torch's counter. "
    "Seconds and bytes are of this run, on the machine it ran on. Training the model: three times its forward pass over its "
    "training tokens. Once: paid for a model and its features; every output: paid again for each text that is looked at."
)
_PROJECTED = (
    "An SAE of width 131,072 at every layer, trained on 500 million tokens; a language model of 70 B parameters explains and "
    "scores every latent (993 and 3,950 tokens). Fractions of the operations of training the model, 6 x active parameters x "
    "tokens. Per output: encoding a token over the model's own forward pass."
)


def save_cost(run: RunDirectory, cost: dict[str, Any]) -> list[Path]:
    """Write ``results/cost.json``, and for the report the tables ``costs`` (its steps) and ``cost_projected``.

    Parameters
    ----------
    run : RunDirectory
    cost : dict
        From `measure_cost`.

    Returns
    -------
    list of Path
        Files written, ``cost.json`` first.
    """
    import pandas as pd

    costs = Result(
        "costs",
        pd.DataFrame(cost["steps"]).astype({"flops": float, "seconds": float, "of_training": float}),
        caption=_STEPS,
        citations=_SOURCES,
        params={
            "training_flops": cost["training_flops"],
            "train_tokens": cost["model"]["train_tokens"],
            "forward_flops": cost["model"]["forward_flops"],
            "model": str(cost["model"]["name"]),
        },
    )
    exponents = growth().groupby("rule")["exponent"].first().to_dict()
    projected = Result(
        "cost_projected",
        published_projections(),
        caption=_PROJECTED,
        citations=_SOURCES,
        params={"exponents": exponents, "width": _WIDTH, "sae_tokens": _SAE_TOKENS},
    )
    text = json.dumps(cost, indent=1, sort_keys=True) + "\n"
    files = save_together(run.results_folder, (costs, projected), texts={"cost.json": text})
    return [*files[-1:], *files[:-1]]


def published_projections() -> pd.DataFrame:
    """Project the same steps for published models: an SAE at every layer.

    Returns
    -------
    pandas.DataFrame
        ``model, active, training_tokens, layers, capture, sae, labelling`` (fractions of training; NaN where its tokens were
        not published), ``per_output_all, per_output_one`` (encoding with the SAEs of all layers, or of one, over a forward
        pass), ``source``.
    """
    import pandas as pd

    rows = []
    for name, model in PRESETS.items():
        plan = SaePlan(layers=model.n_layers, width=_WIDTH, tokens=_SAE_TOKENS)
        share = project(model.active, model.d_model, tokens=model.tokens, saes=plan).fractions()
        rows.append(
            {
                "model": name,
                "active": model.active,
                "training_tokens": model.tokens,
                "layers": model.n_layers,
                **{step: share[step] for step in ("capture", "sae", "labelling")},
                "per_output_all": share["per output"],
                "per_output_one": share["per output"] / model.n_layers,
                "source": model.source,
            }
        )
    return pd.DataFrame(rows)
