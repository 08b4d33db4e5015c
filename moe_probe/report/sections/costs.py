"""Section on cost: what was paid here, once or on every output, and what the same would cost for other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.core.text import is_missing
from moe_probe.report.cells import table_of
from moe_probe.report.content import Block, Section, Table

if TYPE_CHECKING:
    from moe_probe.core.results import Result


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def amount(value: Any) -> str:
    """Write a large or small number in two digits: ``1.2e13`` as ``1.2 × 10¹³``."""
    if is_missing(value):
        return "–"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{float(f'{value:.2g}'):,g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def share(value: Any) -> str:
    """Write a fraction in two digits: as a percentage, or from 10 on as a multiple."""
    if is_missing(value):
        return "–"
    return f"{amount(value)} times" if value >= 10 else f"{amount(100 * value)} %"


def costs_section(results: Mapping[str, Result]) -> Section:
    """Show what each step cost compared with training the model, what is paid again, and how costs grow with size."""
    steps = results["costs"]
    blocks: list[Block] = [
        table_of(
            steps.table,
            {
                "step": "step",
                "paid": "paid",
                "operations": ("flops", amount),
                "of training the model": ("of_training", share),
                "seconds here": ("seconds", lambda value: f"{value:,.1f} s"),
                "on disk": ("bytes", lambda value: f"{value / 1e6:,.1f} MB" if value else "–"),
                "tokens of a language model": ("llm_tokens", lambda value: f"{int(value):,}" if value else "–"),
                "note": "note",
            },
            heading="Steps of this run",
            note="The seconds are of the machine that this ran on.",
        )
    ]
    how = steps.caption
    if "cost_projected" in results:
        projected = results["cost_projected"]
        slopes = "; ".join(
            f"{rule}: {x:.2f}" for rule, x in sorted(projected.params["exponents"].items(), key=lambda x: x[1])
        )
        how += (
            f" {projected.caption} The cost of SAEs grows as a power of training's cost, by how they are widened: {slopes}. "
            "Token counts that were not published are not guessed. For comparison, all of Gemma Scope (more than 400 SAEs) took "
            "about a fifth of the operations of training GPT-3 (Lieberum et al. 2024, arXiv:2408.05147). That is 14 % of those "
            "of Gemma 2 9B by the same count: many SAEs of many widths are not cheap."
        )
        blocks.append(_projected(projected))
    if "depth_first" in results:
        blocks.append(_break_even(results["depth_first"]))
    return Section(
        title="What does it cost, once or on every output?",
        finding=finding(results),
        blocks=tuple(blocks),
        how=how,
        limits="Operations are not seconds: sparse steps reach a smaller part of a machine's peak than a model's own products "
        "do. Training a small model is cheap, so that fractions are large here; for large models read the projections.",
    )


def finding(results: Mapping[str, Result]) -> str:
    """Answer in sentences what SAEs and labels cost."""
    steps = results["costs"]
    table = steps.table.set_index("step")
    parts = []
    if steps.params["training_flops"]:
        names = {
            "collect": "recording",
            "train SAEs": "training SAEs",
            "label by a language model": "labelling by a language model (not done here)",
        }
        once = [f"{name} {share(table.loc[step, 'of_training'])}" for step, name in names.items() if step in table.index]
        paid = "each is paid once" if len(once) > 1 else "paid once"
        parts.append(f"Compared with the cost of training this model: {', '.join(once)}; {paid}.")
    forward = steps.params["forward_flops"]
    if forward and "encode an output" in table.index:
        parts.append(
            f"Paid on every output: one SAE adds {share(table.loc['encode an output', 'flops'] / forward)} to the "
            "operations of a forward pass."
        )
    if "cost_projected" in results and "train SAEs" in table.index:
        slopes = results["cost_projected"].params["exponents"]
        low, high = min(slopes.values()), max(slopes.values())
        parts.append(
            f"The cost of SAEs at every layer grows as training's cost to the power {low:.2f} to {high:.2f}, depending on their "
            "widths: their fraction falls as models grow."
        )
    return " ".join(parts) or "Operations were not counted: the model's sizes are not known."


def _projected(result: Result) -> Table:
    return table_of(
        result.table,
        {
            "model": "model",
            "parameters per token": ("active", amount),
            "training tokens": ("training_tokens", amount),
            "recording": ("capture", share),
            "SAEs": ("sae", share),
            "labels": ("labelling", share),
            "an output, one layer": ("per_output_one", share),
            "an output, all layers": ("per_output_all", share),
            "source": "source",
        },
        heading="The same for published models",
        note="Projected operations as a fraction of the model's own: of training it (recording, SAEs, labels), and of a forward "
        "pass (an output).",
    )


def _break_even(result: Result) -> str:
    from moe_probe.studies.cost import break_even_nodes

    root_share, small = float(result.params["root_share"]), int(result.params["width"])
    wide = int(result.table[result.table["way"] == "breadth first"]["width"].max())
    nodes = break_even_nodes(root_share, wide=wide, root=0, small=small)
    return (
        f"Depth-first pays for one subject. Here the root fires on {root_share:.1%} of tokens. On as many tokens, {nodes:,.0f} "
        f"dictionaries of {small} latents take as many operations as one of {wide:,} on all tokens. "
        f"{int(result.params['dictionaries'])} were trained here. For every subject at once it saves nothing."
    )
