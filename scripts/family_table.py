"""Write docs/families.md: every mixture-of-experts family, how it is captured, and the error measured.

    python scripts/family_table.py [OUTPUT]

Everything but the column "gate weights" is measured here on tiny random models; that column was read
in the source of transformers 5.23 and says "not read" for families that are newer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

from moe_probe.models import find_moe_layers, self_check
from moe_probe.models.check import CheckReport
from moe_probe.models.discover import MoeSite
from moe_probe.testing import moe_families, tiny_moe

#: Rule that gives ids and weights, by family.
RULES = {
    "sigmoid+b, groups, norm?, scaled": "axk1 bailing_hybrid deepseek_v3 deepseek_v32 dots1 dots3_note "
    "exaone_moe glm4_moe glm4_moe_lite glm4v_moe glm5_next glm_moe_dsa hy_v4 kimi_linear mimo_v2_flash "
    "nemotron_h solar_open",
    "sigmoid+b, groups optional, norm?, scaled": "axk2",
    "sigmoid+b, groups, norm?": "beam",
    "sigmoid+b, norm": "minimax_m2 minimax_m3_vl step3p7",
    "sigmoid+b (capped logits), norm": "laguna",
    "sigmoid+b, norm, scaled": "afmoe hy_v3 muse_spark",
    "sigmoid (+b), norm?, scaled": "lfm2_moe",
    "sigmoid or sqrt softplus, +b, norm, scaled": "inkling2",
    "sqrt softplus+b, norm, scaled; first layers: fixed experts per token id": "deepseek_v4",
    "sigmoid+b; weights shared out over chosen and shared experts together, scaled": "inkling",
    "top-k of logits+b, then sigmoid, norm?": "kolibri1",
    "sigmoid, top-k, norm?": "flint",
    "top-k of logits, then sigmoid, on the input": "llama4",
    "softmax, top-k": "jamba",
    "softmax, top-k, norm?": "flex_olmo mellum olmoe qwen2_moe qwen3_moe qwen3_next qwen3_omni_moe qwen4_exp",
    "softmax, top-k, norm": "hunyuan_v1_moe minimax mixtral qwen3_5_moe qwen3_vl_moe",
    "softmax, top-k, p-norm": "dbrx",
    "softmax, top-k, norm, times a scale of each expert": "diffusion_gemma gemma4",
    "softmax, greedy or groups, scaled": "deepseek_ocr2 deepseek_v2 unlimited_ocr",
    "softmax, groups, norm?, scaled": "mistral4",
    "softmax, groups, norm, scaled": "mistral_large4",
    "softmax+b, norm": "ernie4_5_moe ernie4_5_vl_moe",
    "softmax+b, scaled": "longcat_flash",
    "softmax over experts and skip (+b), top-1; router state runs through the layers": "zaya",
    "softmax, top-1, capacity": "switch_transformers",
    "softmax, top-2, capacity": "nllb_moe",
    "two masked softmaxes (weights sum to at most 2)": "phimoe",
    "top-k, then softmax": "aria gpt_oss granitemoe granitemoe_swa granitemoehybrid granitemoeshared jetmoe",
    "top-k, then softmax, or sigmoid": "cohere2_moe",
    "top-k, then softmax, /k": "openai_privacy_filter",
    "sum of two keys, top-k, then softmax": "doge",
}

#: What happens to the mixture of experts afterwards, where it is more than being added.
AFTERWARDS = {
    "a constant follows the experts (routed_scaling_factor or the like)": "beam laguna minimax_m3_vl step3p7",
    "multiplied by k after the experts": "openai_privacy_filter",
    "averaged with the shared expert": "cohere2_moe",
    "multiplied by 1 - moe_token_dropout": "nllb_moe",
    "projected back from a smaller space": "muse_spark nemotron_h",
    "normalised after the sum: contributions do not add up behind it": "axk1 diffusion_gemma gemma4",
}

INTRO = """# Mixture-of-experts families

Written by `scripts/family_table.py` with transformers {transformers} and torch {torch}: {n} families, each
as a tiny random model in float32 on the CPU. `tests/models/test_families.py` fails when a family is missing here.

- **captured**: `experts-input` reads what the experts module is called with (hidden states, expert ids, gate
  weights); the other names are adapters in `moe_probe/models/`.
- **error**: relative difference between gate weights times recomputed expert outputs and the mixture the
  model computed, worst layer. Outputs of the model are the same bit for bit with recording on:
  {unchanged} of {n}.
- **top logits**: share of tokens whose executed experts are those with the largest router logits. Below 1,
  ids must not be derived from logits. Selection biases are random here (standard deviation 0.3), groups
  are on.
- **sum w**: mean sum of the gate weights of a token, in the last layer.
- **gate weights**: +b: selection bias, not part of the weight; groups: experts are chosen within the best
  groups; norm: made to sum to 1; norm?: only if `norm_topk_prob`; scaled: times `routed_scaling_factor`.

| family | class | experts at | router | gate weights | captured | error | top logits | sum w | notes |
|---|---|---|---|---|---|---|---|---|---|
"""


def by_family(table: dict[str, str]) -> dict[str, str]:
    return {family: text for text, families in table.items() for family in families.split()}


def path_pattern(sites: list[MoeSite]) -> str:
    """Module paths of the sites with numbers replaced, each once."""
    patterns = []
    for site in sites:
        pattern = ".".join("{i}" if part.isdigit() else part for part in site.info.name.split("."))
        if pattern not in patterns:
            patterns.append(pattern)
    return "<br>".join(f"`{pattern}`" for pattern in patterns)


def measured(family: str) -> tuple[str, CheckReport]:
    """One row of the table, and the report behind it."""
    model = tiny_moe(family)
    sites = find_moe_layers(model)
    report = self_check(model, sites)
    rules, afterwards = by_family(RULES), by_family(AFTERWARDS)
    notes = dict.fromkeys(site.info.note for site in sites if site.info.note)
    if family in afterwards:
        notes[afterwards[family]] = None
    dropped = max(site.dropped_share for site in report.sites)
    if dropped:
        notes[f"{dropped:.0%} of slots dropped here"] = None
    tops = [site.top_logits_share for site in report.sites]
    cells = [
        f"`{family}`",
        type(model).__name__,
        path_pattern(sites),
        "<br>".join(dict.fromkeys(site.info.router for site in sites)),
        rules.get(family, "not read"),
        ", ".join(dict.fromkeys(site.info.capture for site in sites)),
        f"{max(site.relative_error for site in report.sites):.0e}",
        f"{sum(tops) / len(tops):.2f}".replace("nan", "-"),
        f"{report.sites[-1].mean_weight_sum:.2f}",
        "; ".join(notes),
    ]
    return "| " + " | ".join(cells) + " |\n", report


def main(output: Path) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = [measured(family) for family in moe_families()]
    intro = INTRO.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        n=len(rows),
        unchanged=sum(report.outputs_unchanged for _, report in rows),
    )
    before = output.read_text(encoding="utf-8") if output.exists() else ""
    _, heading, by_hand = before.partition("\n## Quantised checkpoints\n")  # not measured here: kept as it is
    output.write_text(intro + "".join(row for row, _ in rows) + heading + by_hand, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "families.md")
