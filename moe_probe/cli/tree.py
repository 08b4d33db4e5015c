"""Commands that compare experts, features and topics: match, ablate, tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import model_validator

from moe_probe.cli.console import Console, need_label
from moe_probe.cli.model_choice import ModelChoice
from moe_probe.cli.options import RunPath, Seed, Strata, command
from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.settings import Settings, StatisticsSettings, setting
from moe_probe.core.text import clipped, table_text
from moe_probe.features.tree.options import DepthOptions, TreeSettings
from moe_probe.models.settings import HOW
from moe_probe.studies.ablation.settings import AblationSettings

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
    from moe_probe.recording.rundir import RunDirectory
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


class AblateOptions(Settings):
    """Options of the command."""

    expert: tuple[str, ...] = setting(
        (), "LAYER:EXPERT, or a group LAYER:EXPERT+EXPERT (repeat for more); by default those of the verdicts"
    )
    feature: tuple[str, ...] = setting((), "FOLDER:FEATURE, as layer_05/width_01024:334 (repeat for more)")
    topic: tuple[str, ...] = setting((), "topic that these are claimed to stand for (repeat for more)")
    how: str = setting(AblationSettings.how, "experts: mask (the router cannot choose them), zero, mean, steer")
    boost: float = setting(1.0, "added to the experts' logits (steer)")
    by: str = setting(AblationSettings.by, "label column whose values losses are compared over")
    tokens: int = setting(AblationSettings.tokens, "tokens of held-out documents that losses are measured on", ge=256)
    controls: int = setting(
        AblationSettings.controls, "units of the same load to compare each with; with none nothing can be confirmed", ge=0
    )

    @model_validator(mode="after")
    def _check(self) -> AblateOptions:
        if self.how not in HOW:
            raise UsageError(f"--how {self.how} is not known", "", f"one of {', '.join(HOW)}")
        return self

    def ablation(self, seed: int) -> AblationSettings:
        """How units are knocked out."""
        boost = self.boost if self.how == "steer" else 0.0
        return AblationSettings(by=self.by, how=self.how, boost=boost, tokens=self.tokens, controls=self.controls, seed=seed)


def ablate(run: RunPath, *, options: AblateOptions, choice: ModelChoice, seed: Seed = 0, console: Console) -> None:
    """Knock out (or steer to) experts, groups or features, and measure the change of the loss on every topic."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.ablation import ablate_run, parse_units, summary_lines
    from moe_probe.studies.verdicts import update_verdicts

    opened, o = RunDirectory.open(run), options
    need_label(opened, o.by, "--by")
    _need_topics(opened, o)
    units = parse_units(opened, o.expert, o.feature, claimed_topics=o.topic)
    loaded = choice.need(run, "nothing can be knocked out")
    result = ablate_run(opened, loaded, units=units, settings=o.ablation(seed), say=console.say)
    # the run's own table is that of its verdicts; what is asked beside it has another place
    of_verdicts = not units and o.how != "steer"
    where = result.save(run / "results" if of_verdicts else run / "results" / "asked")
    if of_verdicts:
        update_verdicts(opened)
    console.result(
        {"ablation": result.table.to_dict("records"), "table": str(where)},
        "\n".join([*summary_lines(result), f"Table: {where}. Next: moe-probe report {run}"]),
    )


def _need_topics(trace: Trace, options: AblateOptions) -> None:
    """Refuse topics that no document has, and topics without a unit that is claimed to stand for them."""
    known = sorted({str(value) for value in trace.documents[options.by].dropna()})
    for topic in options.topic:
        if topic not in known:
            raise UsageError(
                f"--topic {topic} names no {options.by} of the documents",
                did_you_mean(topic, known),
                "moe-probe info RUN lists them",
            )
    if options.topic and not options.expert and not options.feature:
        raise UsageError(
            "--topic was given without a unit",
            "it says what an --expert or --feature is claimed to stand for",
            "--expert LAYER:EXPERT --topic TOPIC",
        )


class TreeOptions(Settings):
    """Options of the command."""

    null: bool = setting(
        TreeSettings.null, "train each narrower SAE again from another seed, to see if it groups features alike"
    )
    by: str = setting(TreeSettings.by, "label column of the subjects that the tree is compared with")
    permutations: int = setting(TreeSettings.permutations, "label permutations behind every p-value", ge=99)
    walk: str | None = setting(None, "only print the tree below a feature: FOLDER:FEATURE, as layer_05/width_00256:12")
    word: str | None = setting(
        None, "only follow a word of the corpus from the coarsest feature that responds to it to the finest"
    )
    depth_first: str | None = setting(
        None,
        "only train small dictionaries where a coarse feature (FOLDER:FEATURE) fires, and again where theirs do, and compare "
        "with dictionaries on all tokens; auto takes the clearest feature (of --topic)",
    )
    topic: str | None = setting(None, "subject of --depth-first")
    depth_width: int = setting(DepthOptions.width, "latents of a small dictionary", ge=2)
    depth: int = setting(DepthOptions.depth, "levels of small dictionaries", ge=1)

    def tests(self, strata: str | None, seed: int) -> TreeSettings:
        """How the tree is tested."""
        return TreeSettings(null=self.null, by=self.by, permutations=self.permutations, seed=seed, strata=strata)


def tree(run: RunPath, *, options: TreeOptions, strata: Strata = None, seed: Seed = 0, console: Console) -> None:
    """Join SAEs of rising width: which features split, whether another seed finds the same, and whether along human subjects."""
    from moe_probe.features.tree import build_tree, tree_lines, walk_word, word_walk_lines
    from moe_probe.recording.rundir import RunDirectory

    opened, o = RunDirectory.open(run), options
    if o.walk is not None:
        return _walk(opened, o.walk, console)
    if o.word is not None:
        steps = walk_word(opened, o.word)
        return console.result({"word": o.word, "steps": steps}, "\n".join(word_walk_lines(o.word, steps)))
    from moe_probe.experts.strata import choose_strata

    tests = o.tests(choose_strata(run, opened, by=o.by, given=strata), seed)
    if o.depth_first is not None or o.topic is not None:
        return _depth_first(opened, o, tests, console)
    results = build_tree(opened, settings=tests, say=console.say)
    opened.save(results)
    console.notes(warning for result in results for warning in result.warnings)
    data = {r.name: r.table.to_dict("records") for r in results if r.name in ("splitting", "tree_subjects", "tree_distance")}
    edges = len(results[0].table)
    last = (
        f"{edges:,} edges: {opened.results_folder / 'tree.parquet'}. "
        f"Next: moe-probe tree {run} --word WORD, --depth-first auto, or moe-probe report {run}"
    )
    return console.result(data | {"edges": edges}, "\n".join([*tree_lines(results), last]))


def _walk(run: RunDirectory, start: str, console: Console) -> None:
    from moe_probe.features.tree import walk_feature

    name, _, number = start.rpartition(":")
    if not number.isdigit():
        raise UsageError(f"--walk {start} cannot be read", "", "FOLDER:FEATURE, as layer_05/width_00256:12")
    lines = walk_feature(run, name, int(number))
    console.result({"walk": lines}, "\n".join(lines))


def _depth_first(run: RunDirectory, o: TreeOptions, tests: TreeSettings, console: Console) -> None:
    from moe_probe.features.tree import DepthFirstSettings, depth_first

    width = o.depth_width
    small = DepthOptions(width=width, depth=o.depth, min_tokens=20 * width, k=max(1, min(4, width // 4)), seed=tests.seed)
    root = None if o.depth_first in (None, "auto") else o.depth_first
    results = depth_first(run, DepthFirstSettings(root, o.topic, small, tests), say=console.say)
    run.save(results)
    compared, features = results
    shown = features.table[features.table["mine"] & features.table["good"]].sort_values("label_score", ascending=False)
    lines = [
        f"{compared.params['subject']}, from {compared.params['root']}",
        table_text(compared.table.round(4)),
        *(f"  {r.path}:{r.feature} {clipped(r.label, 70)} (score {r.label_score:.2f})" for r in shown.head(10).itertuples()),
        f"Tables: {run.results_folder}: depth_first, depth_features. Next: moe-probe report {run.path}",
    ]
    console.result({"depth_first": compared.table.to_dict("records"), "params": compared.params}, "\n".join(lines))
