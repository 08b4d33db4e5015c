"""Commands on features: `label` and `find`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moe_probe.cli.console import Console, need_label
from moe_probe.cli.model_choice import ModelChoice
from moe_probe.cli.options import RunPath, Seed, Strata, command, writes_run
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.extras import need_extra
from moe_probe.core.lock import locked
from moe_probe.core.settings import Settings, StatisticsSettings, setting
from moe_probe.core.text import quoted

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.rundir import RunDirectory


class LlmChoice(Settings):
    """Options that choose a language model for labels, and what may be sent to it."""

    panel: ClassVar[str] = "Labels by a language model"

    llm_url: str | None = setting(
        None, "OpenAI-compatible endpoint; sends excerpts of your corpus there, and without it nothing is sent"
    )
    llm_model: str = setting("", "model of the endpoint")
    llm_key_env: str = setting("OPENAI_API_KEY", "environment variable with its key")
    llm_price: tuple[float, float] = setting((0.0, 0.0), "dollars per million tokens, in and out")
    yes: bool = setting(False, "send without asking, once the cost has been estimated")

    def check(self) -> None:
        """Refuse at once what would otherwise show only after features have been labelled, which takes minutes.

        Raises
        ------
        MoeProbeError
            Without a model's name, or the extra ``llm``.
        """
        if self.llm_url is not None and not self.llm_model:
            raise UsageError("no --llm-model was given", "an endpoint serves several", "--llm-model NAME")
        if self.llm_url is not None:
            need_extra("llm", "labels by a language model")

    def label(self, run: RunDirectory, features: Result, excerpts: Result, seed: int, console: Console) -> Result:
        """Estimate the cost, ask, then label the features that have cards.

        Parameters
        ----------
        run : RunDirectory
        features, excerpts : Result
            ``features`` and ``feature_cards``.
        seed : int
        console : Console

        Returns
        -------
        Result
            ``features`` with these labels.

        Raises
        ------
        MoeProbeError
            When nobody is there to be asked.
        """
        from moe_probe.features.labels.endpoint import Endpoint
        from moe_probe.features.labels.llm_labels import estimate_cost, label_by_llm

        endpoint = Endpoint(
            base_url=self.llm_url or "",
            model=self.llm_model,
            api_key=os.environ.get(self.llm_key_env, ""),
            price_in=self.llm_price[0] or None,
            price_out=self.llm_price[1] or None,
        )
        console.say(estimate_cost(run, excerpts, endpoint, seed=seed).sentence())
        if not self.yes:
            if not sys.stdin.isatty():
                why = "labelling by a language model has to be confirmed"
                raise MoeProbeError("nothing was sent", why, "--yes", exit_code=2)
            typer.confirm(f"Send excerpts of this corpus to {self.llm_url}?", abort=True, err=True)
        return label_by_llm(run, features, excerpts, endpoint, seed=seed)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "label", "moe-probe label runs/mine --feature-labels my_labels.csv", leave_out=("strata",))(label)
    command(app, "find", 'moe-probe find runs/mine "anthrax"')(find)


@locked(writes_run)
def label(
    run: RunPath,
    *,
    statistics: StatisticsSettings,
    strata: Strata = None,
    feature_labels: Annotated[
        Path | None,
        typer.Option(
            "--feature-labels",
            help="Your own labels: CSV of sae, feature, label, and optionally pattern (a regular expression that is scored).",
            show_default=False,
        ),
    ] = None,
    cards: Annotated[int, typer.Option("--cards", min=0, help="Features of each SAE with excerpts.")] = 8,
    llm: LlmChoice,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Label features by rules that are scored on held-out text; by a language model or by hand if asked."""
    from moe_probe.experts.strata import choose_strata
    from moe_probe.features.describe import LabelSettings
    from moe_probe.features.label import label as label_all
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.verdicts import update_verdicts

    opened = RunDirectory.open(run)
    need_label(opened, statistics.by, "--by")
    within = choose_strata(run, opened, by=statistics.by, given=strata)
    if feature_labels is not None and not feature_labels.is_file():
        raise MoeProbeError(f"{feature_labels} cannot be read", "there is no such file", "a CSV of sae, feature, label")
    llm.check()
    settings = LabelSettings(**statistics.model_dump() | {"strata": within}, cards=cards, seed=seed)
    features, excerpts = label_all(opened, settings, say=console.say)
    if llm.llm_url is not None:
        features = llm.label(opened, features, excerpts, seed, console)
    if feature_labels is not None:
        from moe_probe.features.labels.human_labels import apply_labels

        features = apply_labels(opened, features, feature_labels)
    update_verdicts(opened, (features, excerpts), settings=asdict(settings))
    console.notes(features.warnings)
    good, table = int(features.table["good"].sum()), opened.results_folder / "features.parquet"
    console.result(
        {"features": len(features.table), "good": good, "table": str(table)},
        f"{good:,} of {len(features.table):,} features have a good label: {table}. Next: moe-probe report {quoted(run)}",
    )


def find(
    run: RunPath,
    query: Annotated[
        str, typer.Argument(help="Word or phrase; with --regex a regular expression.", show_default=False)
    ] = "",
    *,
    regex: Annotated[bool, typer.Option("--regex", help="QUERY is a regular expression.")] = False,
    contrast: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--contrast", help="Two text files: what fires in the first and not in the second.", show_default=False
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Features and experts to list.")] = 10,
    choice: ModelChoice,
    console: Console,
) -> None:
    """Find features and experts by a word, a phrase, a regular expression, or a pair of contrast files."""
    from moe_probe.features.search import Query, find_units
    from moe_probe.recording.rundir import RunDirectory

    if bool(query) == (contrast is not None):
        raise UsageError("find takes a QUERY or --contrast A B", "one of the two", 'moe-probe find RUN "anthrax"')
    found = find_units(
        RunDirectory.open(run),
        Query(query, regex, contrast, top),
        load=lambda: choice.load(run, console, without="only the corpus is searched"),
        say=console.say,
    )
    console.result(
        {
            "query": query,
            "source": found.source,
            "occurrences": found.n_tokens,
            "features": found.features.to_dict("records"),
            "experts": found.experts.to_dict("records"),
            "columns": dict(zip(("features", "experts"), found.columns, strict=True)),
        },
        found.lines(),
    )
