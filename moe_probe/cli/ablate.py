"""The command `ablate`: the change of the loss when experts, groups or features are knocked out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from pydantic import model_validator

from moe_probe.cli.console import Console, need_label
from moe_probe.cli.model_choice import ModelChoice
from moe_probe.cli.options import RunPath, Seed, command, writes_run
from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.lock import locked
from moe_probe.core.settings import Settings, setting
from moe_probe.core.text import quoted
from moe_probe.models.settings import HOW
from moe_probe.studies.ablation.settings import AblationSettings

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    command(app, "ablate", "moe-probe ablate runs/mine --expert 5:13 --topic mathematics --how zero")(ablate)


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
    tokens: int = setting(
        AblationSettings.tokens, "tokens of held-out documents that losses are measured on", flag="--loss-tokens", ge=256
    )
    controls: int = setting(
        AblationSettings.controls, "units of the same load to compare each with; with none nothing can be confirmed", ge=0
    )

    @model_validator(mode="after")
    def _check(self) -> AblateOptions:
        if self.how not in HOW:
            raise UsageError(f"--how {self.how} is not known", "", f"one of {', '.join(HOW)}")
        return self

    def ablation(self, seed: int) -> AblationSettings:
        """Say how units are knocked out."""
        boost = self.boost if self.how == "steer" else 0.0
        return AblationSettings(by=self.by, how=self.how, boost=boost, tokens=self.tokens, controls=self.controls, seed=seed)


@locked(writes_run)
def ablate(run: RunPath, *, options: AblateOptions, choice: ModelChoice, seed: Seed = 0, console: Console) -> None:
    """Knock out (or steer to) experts, groups or features, and measure the change of the loss on every topic."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.ablation import ablate_run, parse_units, summary_lines
    from moe_probe.studies.verdicts import update_verdicts

    opened, o = RunDirectory.open(run), options
    need_label(opened, o.by, "--by")
    _need_topics(opened, o)
    units = parse_units(opened, o.expert, o.feature, claimed_topics=o.topic)
    loaded = choice.need(run, console, "nothing can be knocked out")
    result = ablate_run(opened, loaded, units=units, settings=o.ablation(seed), say=console.say)
    # the run's own table is that of its verdicts; what is asked beside it has another place
    of_verdicts = not units and o.how != "steer"
    if of_verdicts:
        where = opened.results_folder / f"{result.name}.parquet"
        update_verdicts(opened, [result], settings=asdict(o.ablation(seed)))
    else:
        where = result.save(opened.results_folder / "asked")
    console.result(
        {"ablation": result.table.to_dict("records"), "table": str(where)},
        [*summary_lines(result), f"Table: {where}. Next: moe-probe report {quoted(run)}"],
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
