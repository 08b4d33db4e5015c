"""Section on cost: what was paid here, once or on every output, and what the same would be for other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.report.content import Block, Section, Table, number

if TYPE_CHECKING:
    from moe_probe.core.results import Result


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def amount(value: Any) -> str:
    """A large or small number in two digits: ``1.2e13`` as ``1.2 × 10¹³``."""
    if value is None or value != value:
        return "–"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{float(f'{value:.2g}'):,g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def share(value: Any) -> str:
    """A fraction in two digits: as a percentage, or from 10 on as a multiple."""
    if value is None or value != value:
        return "–"
    return f"{amount(value)} times" if value >= 10 else f"{amount(100 * value)} %"


def costs_section(results: Mapping[str, Result]) -> Section:
    """Say what each step cost beside training the model, what is paid again, and how the tax moves with size."""
    steps = results["costs"]
    rows = tuple(
        (
            str(r["step"]),
            str(r["paid"]),
            amount(r["flops"]),
            share(r["of_training"]),
            _seconds(r["seconds"]),
            _bytes(r["bytes"]),
            number(int(r["llm_tokens"])) if r["llm_tokens"] else "–",
            str(r["note"]),
        )
        for _, r in steps.table.iterrows()
    )
    heads = (
        "step",
        "paid",
        "operations",
        "of training the model",
        "seconds here",
        "on disk",
        "tokens of a language model",
        "note",
    )
    blocks: list[Block] = [
        Table(heads, rows, heading="Steps of this run", note="The seconds are of the machine that this ran on.")
    ]
    if "cost_projected" in results:
        blocks += _projected(results["cost_projected"])
    if "depth_first" in results:
        blocks.append(_break_even(results["depth_first"]))
    return Section(
        title="What does it cost, once or on every output?",
        finding=finding(results),
        blocks=tuple(blocks),
        how=steps.caption,
        limits="Operations are not seconds: sparse steps reach a smaller part of a machine's peak than a model's own products "
        "do. A small model's training is cheap, so that fractions are large here; for large ones read the projections.",
    )


def finding(results: Mapping[str, Result]) -> str:
    """The answer in sentences."""
    steps = results["costs"]
    table = steps.table.set_index("step")
    parts = []
    if steps.params["training_flops"]:
        said = [
            f"{name} {share(table.loc[step, 'of_training'])}"
            for step, name in (
                ("collect", "recording"),
                ("train SAEs", "training SAEs"),
                ("label by a language model", "labelling by a language model (not done here)"),
            )
            if step in table.index
        ]
        parts.append(f"Of what training this model took: {', '.join(said)}; each is paid once.")
    forward = steps.params["forward_flops"]
    if forward and "encode an output" in table.index:
        parts.append(
            f"Paid on every output: one SAE adds {share(table.loc['encode an output', 'flops'] / forward)} to the "
            "operations of a forward pass."
        )
    if "cost_projected" in results:
        slopes = results["cost_projected"].params["exponents"]
        low, high = min(slopes.values()), max(slopes.values())
        parts.append(
            f"It is no linear tax: SAEs at every layer grow as training's cost to the power {low:.2f} to {high:.2f}, "
            "depending on how wide they are made, so that their fraction falls as models grow."
        )
    return " ".join(parts) or "Operations were not counted: the model's sizes are not known."


def _projected(result: Result) -> list[Block]:
    rows = tuple(
        (
            str(r["model"]),
            amount(r["active"]),
            amount(r["training_tokens"]),
            share(r["capture"]),
            share(r["sae"]),
            share(r["labelling"]),
            share(r["per_output_one"]),
            share(r["per_output_all"]),
            str(r["source"]),
        )
        for _, r in result.table.iterrows()
    )
    slopes = "; ".join(
        f"{rule}: {value:.2f}" for rule, value in sorted(result.params["exponents"].items(), key=lambda x: x[1])
    )
    table = Table(
        (
            "model",
            "parameters a token",
            "training tokens",
            "recording",
            "SAEs",
            "labels",
            "an output, one layer",
            "an output, all layers",
            "source",
        ),
        rows,
        heading="The same for published models",
        note=f"{result.caption} Power of training's cost that the SAEs' cost grows with, by how they are widened: "
        f"{slopes}. Tokens that were not published are not guessed.",
    )
    published = (
        "Published for comparison: all of Gemma Scope (more than 400 SAEs) took about a fifth of the operations of "
        "training GPT-3 (Lieberum et al. 2024, arXiv:2408.05147), which is 14 % of those of Gemma 2 9B by the same "
        "count; many SAEs of many widths are no small tax."
    )
    return [table, published]


def _break_even(result: Result) -> str:
    from moe_probe.studies.cost import break_even_nodes

    root_share, small = float(result.params["root_share"]), int(result.params["width"])
    wide = int(result.table[result.table["way"] == "breadth first"]["width"].max())
    nodes = break_even_nodes(root_share, wide=wide, root=0, small=small)
    return (
        f"Depth first pays for one subject: with a root that fires on {root_share:.1%} of tokens, {nodes:,.0f} dictionaries "
        f"of {small} latents, each on as many tokens as the root, take as many operations as one of {wide:,} on all tokens; "
        f"{int(result.params['dictionaries'])} were trained here. For every subject at once it saves nothing."
    )


def _seconds(value: Any) -> str:
    return "–" if value is None or value != value else f"{value:,.1f} s"


def _bytes(value: Any) -> str:
    return f"{value / 1e6:,.1f} MB" if value else "–"
