"""The command `match`: experts beside features, and what predicts each topic best."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from moe_probe.cli.console import Console, need_label
from moe_probe.cli.model_choice import ModelChoice
from moe_probe.cli.options import RunPath, Seed, command, writes_run
from moe_probe.core.lock import locked
from moe_probe.core.settings import StatisticsSettings
from moe_probe.core.text import quoted, table_lines


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    command(app, "match", "moe-probe match runs/mine", leave_out=("strata", "permutations"))(match)


@locked(writes_run)
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
    settings = MatchSettings(statistics.by, per_expert, statistics.alpha, seed=seed)
    results = match_all(
        opened,
        settings,
        say=console.say,
        loaded=choice.load(run, console, without="router rows are not compared"),
    )
    update_verdicts(opened, results, settings=asdict(settings))
    console.notes(warning for result in results for warning in result.warnings)
    carriers = results[-1].table
    readable = carriers["members"].where(carriers["source"] != TOKENS, carriers["label"])  # ids of tokens say nothing
    columns = ["topic", "kind", "source", "members", "auroc_document", "auroc_token", "beyond_expert_document"]
    columns += [c for c in ("beyond_tokens_document", "log2_beyond_words") if c in carriers]
    shown = carriers.assign(members=readable)[columns].round(3)
    console.result(
        {r.name: len(r.table) for r in results} | {"carriers": carriers.to_dict("records")},
        [
            *table_lines(shown),
            f"Tables: {run / 'results'}: {', '.join(r.name for r in results)}. Next: moe-probe ablate {quoted(run)}",
        ],
    )
