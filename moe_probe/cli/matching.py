"""Commands that compare experts, features and topics: match, ablate, tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moe_probe.cli.console import Console, need_label
from moe_probe.cli.model_choice import ModelChoice
from moe_probe.cli.options import RunPath, Seed, Strata, command
from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.settings import StatisticsSettings
from moe_probe.core.text import clipped, table_text
from moe_probe.recording.rundir import RunDirectory

if TYPE_CHECKING:
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.recording.trace import Trace


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "match", "moe-probe match runs/mine", leave_out=("strata", "permutations"))(match)
    command(app, "ablate", "moe-probe ablate runs/mine --expert 5:13 --topic mathematics --how zero")(ablate)
    command(app, "tree", "moe-probe tree runs/mine --word anthrax")(tree)


def match(
    run: RunPath,
    *,
    statistics: StatisticsSettings,
    per_expert: Annotated[int, typer.Option("--per-expert", min=1, help="Features kept of every expert and SAE.")] = 8,
    choice: ModelChoice,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Match experts with features, predict routing from features, and say who carries each topic best."""
    from moe_probe.features.matching.match import match as match_all
    from moe_probe.features.matching.match_features import MatchSettings
    from moe_probe.features.matching.topic_predictors import TOKENS
    from moe_probe.studies.verdicts import update_verdicts

    opened = RunDirectory.open(run)
    need_label(opened, statistics.by, "--by")
    results = match_all(
        opened,
        MatchSettings(statistics.by, per_expert, statistics.alpha, seed=seed),
        say=console.say,
        loaded=choice.load(run, console, without="router rows are not compared"),
    )
    opened.save(results)
    console.notes(warning for result in results for warning in result.warnings)
    update_verdicts(opened)
    carriers = results[-1].table
    readable = carriers["members"].where(carriers["source"] != TOKENS, carriers["label"])  # ids of tokens say nothing
    columns = ["topic", "kind", "source", "members", "auroc_document", "auroc_token", "beyond_expert_document"]
    columns += [c for c in ("beyond_tokens_document", "log2_beyond_words") if c in carriers]
    shown = carriers.assign(members=readable)[columns].round(3)
    console.result(
        {r.name: len(r.table) for r in results} | {"carriers": carriers.to_dict("records")},
        f"{table_text(shown)}\nTables: {run / 'results'}: {', '.join(r.name for r in results)}. "
        f"Next: moe-probe ablate {run}",
    )


def ablate(
    run: RunPath,
    *,
    expert: Annotated[
        list[str] | None,
        typer.Option(
            "--expert",
            help="LAYER:EXPERT, or a group LAYER:EXPERT+EXPERT (repeat for more) [default: those of the verdicts].",
            show_default=False,
        ),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", help="FOLDER:FEATURE, as layer_05/width_01024:334 (repeat for more).", show_default=False),
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option("--topic", help="Topic that these are held to (repeat for more).", show_default=False)
    ] = None,
    how: Annotated[
        str, typer.Option("--how", help="Experts: mask (router cannot choose them), zero, mean, steer.")
    ] = "mask",
    boost: Annotated[float, typer.Option("--boost", help="Added to the experts' logits (steer).")] = 1.0,
    by: Annotated[str, typer.Option("--by", help="Label that losses are compared over.")] = "topic",
    tokens: Annotated[int, typer.Option("--tokens", min=256, help="Tokens of held-out documents.")] = 24_576,
    controls: Annotated[
        int,
        typer.Option("--controls", min=0, help="Units of the same load to compare each with. 0: nothing can be confirmed."),
    ] = 2,
    choice: ModelChoice,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Knock out (or steer to) experts, groups or features, and measure the change of the loss on every topic."""
    from moe_probe.models.intervene import HOW
    from moe_probe.studies.ablation import AblationSettings, ablate_run, parse_units, summary_lines
    from moe_probe.studies.verdicts import update_verdicts

    if how not in HOW:
        raise UsageError(f"--how {how} is not known", "", f"one of {', '.join(HOW)}")
    opened = RunDirectory.open(run)
    need_label(opened, by, "--by")
    _need_topics(opened, by, topic or (), named=bool(expert or feature))
    units = parse_units(opened, expert or (), feature or (), claimed_topics=topic or ())
    loaded = choice.need(run, "nothing can be knocked out")
    boost = boost if how == "steer" else 0.0
    settings = AblationSettings(by=by, how=how, boost=boost, tokens=tokens, controls=controls, seed=seed)
    result = ablate_run(opened, loaded, units=units, settings=settings, say=console.say)
    # the run's own table is that of its verdicts; what is asked beside it has another place
    of_verdicts = not units and how != "steer"
    where = result.save(run / "results" if of_verdicts else run / "results" / "asked")
    if of_verdicts:
        update_verdicts(opened)
    console.result(
        {"ablation": result.table.to_dict("records"), "table": str(where)},
        "\n".join([*summary_lines(result), f"Table: {where}. Next: moe-probe report {run}"]),
    )


def _need_topics(trace: Trace, by: str, topics: Sequence[str], *, named: bool) -> None:
    """Refuse topics that no document has, and topics without a unit that is held to them."""
    known = sorted({str(value) for value in trace.documents[by].dropna()})
    for topic in topics:
        if topic not in known:
            raise UsageError(
                f"--topic {topic} names no {by} of the documents",
                did_you_mean(topic, known),
                "moe-probe info RUN lists them",
            )
    if topics and not named:
        raise UsageError(
            "--topic was given without a unit",
            "it says what an --expert or --feature is held to",
            "--expert LAYER:EXPERT --topic TOPIC",
        )


def tree(
    run: RunPath,
    *,
    null: Annotated[
        bool,
        typer.Option(
            "--null/--no-null", help="Train each narrower SAE again from another seed, to see if it groups features alike."
        ),
    ] = True,
    by: Annotated[str, typer.Option("--by", help="Label of subjects that the tree is held against.")] = "topic",
    strata: Strata = None,
    permutations: Annotated[int, typer.Option("--permutations", min=99, help="Behind every p-value.")] = 300,
    walk: Annotated[
        str | None,
        typer.Option(
            "--walk",
            metavar="FOLDER:FEATURE",
            help="Only print the tree below a feature, as layer_05/width_00256:12.",
            show_default=False,
        ),
    ] = None,
    word: Annotated[
        str | None,
        typer.Option(
            "--word",
            help="Only follow a word of the corpus from the coarsest feature that answers to it to the finest.",
            show_default=False,
        ),
    ] = None,
    depth_first: Annotated[
        str | None,
        typer.Option(
            "--depth-first",
            metavar="FOLDER:FEATURE|auto",
            help="Only train small dictionaries where a coarse feature fires, and "
            "again where theirs do, and compare with dictionaries on all tokens; auto takes the clearest feature (of --topic).",
            show_default=False,
        ),
    ] = None,
    topic: Annotated[str | None, typer.Option("--topic", help="Subject of --depth-first.", show_default=False)] = None,
    depth_width: Annotated[int, typer.Option("--depth-width", min=2, help="Latents of a small dictionary.")] = 32,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Levels of small dictionaries.")] = 3,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Join SAEs of rising width: which features split, whether another seed finds the same, and whether along human subjects."""
    from moe_probe.features.tree import TreeSettings, build_tree, tree_lines, walk_word, word_walk_lines
    from moe_probe.recording.rundir import RunDirectory

    directory = RunDirectory.open(run)
    if walk is not None:
        return _walk(directory, walk, console)
    if word is not None:
        steps = walk_word(directory, word)
        return console.result({"word": word, "steps": steps}, "\n".join(word_walk_lines(word, steps)))
    from moe_probe.experts.strata import choose_strata

    within = choose_strata(run, directory, by=by, given=strata)
    if depth_first is not None or topic is not None:
        return _depth_first(
            directory, depth_first, topic, by=by, width=depth_width, depth=depth, seed=seed, strata=within, console=console
        )
    settings = TreeSettings(null=null, by=by, permutations=permutations, seed=seed, strata=within)
    results = build_tree(directory, settings=settings, say=console.say)
    for result in results:
        result.save(run / "results")
        for warning in result.warnings:
            console.say(f"note: {warning}")
    data = {r.name: r.table.to_dict("records") for r in results if r.name in ("splitting", "tree_subjects", "tree_distance")}
    return console.result(
        data | {"edges": len(results[0].table)},
        "\n".join(
            [
                *tree_lines(results),
                f"{len(results[0].table):,} edges: {run / 'results' / 'tree.parquet'}. Next: moe-probe tree {run} "
                "--word WORD, --depth-first auto, or moe-probe report " + str(run),
            ]
        ),
    )


def _walk(run: RunDirectory, start: str, console: Console) -> None:
    from moe_probe.features.tree import walk_feature

    name, _, number = start.rpartition(":")
    if not number.isdigit():
        raise UsageError(f"--walk {start} cannot be read", "", "FOLDER:FEATURE, as layer_05/width_00256:12")
    lines = walk_feature(run, name, int(number))
    console.result({"walk": lines}, "\n".join(lines))


def _depth_first(
    run: RunDirectory,
    root: str | None,
    topic: str | None,
    *,
    by: str,
    width: int,
    depth: int,
    seed: int,
    strata: str | None,
    console: Console,
) -> None:
    from moe_probe.features.tree import DepthFirstSettings, DepthOptions, TreeSettings, depth_first

    options = DepthOptions(width=width, depth=depth, min_tokens=20 * width, k=max(1, min(4, width // 4)), seed=seed)
    tests = TreeSettings(by=by, seed=seed, strata=strata)
    settings = DepthFirstSettings(None if root in (None, "auto") else root, topic, options, tests)
    results = depth_first(run, settings, say=console.say)
    run.save(results)
    compared, found = results
    shown = found.table[found.table["mine"] & found.table["good"]].sort_values("label_score", ascending=False)
    best = [
        f"  {r.path}:{r.feature} {clipped(r.label, 70)} (score {r.label_score:.2f})" for r in shown.head(10).itertuples()
    ]
    console.result(
        {"depth_first": compared.table.to_dict("records"), "params": compared.params},
        "\n".join(
            [
                f"{compared.params['subject']}, from {compared.params['root']}",
                table_text(compared.table.round(4)),
                *best,
                f"Tables: {run.results_folder}: depth_first, depth_features. Next: moe-probe report {run.path}",
            ]
        ),
    )
