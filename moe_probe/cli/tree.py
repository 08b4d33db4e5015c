"""The command `tree`: how features of narrow SAEs split in wider ones, and walks down that tree."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import RunPath, Seed, Strata, command, writes_run
from moe_probe.core.errors import UsageError
from moe_probe.core.lock import locked
from moe_probe.core.settings import Settings, setting
from moe_probe.core.text import clipped, quoted, table_lines
from moe_probe.features.tree.options import DepthOptions, TreeSettings

if TYPE_CHECKING:
    from moe_probe.recording.rundir import RunDirectory


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    command(app, "tree", "moe-probe tree runs/mine --word anthrax")(tree)


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
        """Say how the tree is tested.

        Parameters
        ----------
        strata : str, optional
        seed : int

        Returns
        -------
        TreeSettings
        """
        return TreeSettings(null=self.null, by=self.by, permutations=self.permutations, seed=seed, strata=strata)


def _written(*, run: Path, options: TreeOptions, **_: Any) -> Path | None:
    """Run that is written to: walks only read."""
    return writes_run(run=run) if options.walk is None and options.word is None else None


@locked(_written)
def tree(run: RunPath, *, options: TreeOptions, strata: Strata = None, seed: Seed = 0, console: Console) -> None:
    """Join SAEs of rising width: which features split, whether another seed finds the same, and whether along human subjects."""
    from moe_probe.features.tree import build_tree, tree_lines, walk_word, word_walk_lines
    from moe_probe.recording.rundir import RunDirectory

    opened, o = RunDirectory.open(run), options
    if o.walk is not None:
        return _walk(opened, o.walk, console)
    if o.word is not None:
        steps = walk_word(opened, o.word)
        return console.result({"word": o.word, "steps": steps}, word_walk_lines(o.word, steps))
    from moe_probe.experts.strata import choose_strata

    tests = o.tests(choose_strata(run, opened, by=o.by, given=strata), seed)
    if o.depth_first is not None or o.topic is not None:
        return _depth_first(opened, o, tests, console)
    results = build_tree(opened, settings=tests, say=console.say)
    opened.save(results, settings=asdict(tests))
    console.notes(warning for result in results for warning in result.warnings)
    data = {r.name: r.table.to_dict("records") for r in results if r.name in ("splitting", "tree_subjects", "tree_distance")}
    edges = len(results[0].table)
    last = (
        f"{edges:,} edges: {opened.results_folder / 'tree.parquet'}. "
        f"Next: moe-probe tree {quoted(run)} --word WORD, --depth-first auto, or moe-probe report {quoted(run)}"
    )
    return console.result(data | {"edges": edges}, [*tree_lines(results), last])


def _walk(run: RunDirectory, start: str, console: Console) -> None:
    from moe_probe.features.tree import walk_feature

    name, _, number = start.rpartition(":")
    if not number.isdigit():
        raise UsageError(f"--walk {start} cannot be read", "", "FOLDER:FEATURE, as layer_05/width_00256:12")
    lines = walk_feature(run, name, int(number))
    console.result({"walk": lines}, lines)


def _depth_first(run: RunDirectory, o: TreeOptions, tests: TreeSettings, console: Console) -> None:
    from moe_probe.features.tree import DepthFirstSettings, depth_first

    width = o.depth_width
    small = DepthOptions(width=width, depth=o.depth, min_tokens=20 * width, k=max(1, min(4, width // 4)), seed=tests.seed)
    root = None if o.depth_first in (None, "auto") else o.depth_first
    results = depth_first(run, DepthFirstSettings(root, o.topic, small, tests), say=console.say)
    run.save(results, settings=asdict(tests) | asdict(small) | {"root": root, "topic": o.topic})
    compared, features = results
    shown = features.table[features.table["mine"] & features.table["good"]].sort_values("label_score", ascending=False)
    lines = [
        f"{compared.params['subject']}, from {compared.params['root']}",
        *table_lines(compared.table.round(4)),
        *(f"  {r.path}:{r.feature} {clipped(r.label, 70)} (score {r.label_score:.2f})" for r in shown.head(10).itertuples()),
        f"Tables: {run.results_folder}: depth_first, depth_features. Next: moe-probe report {quoted(run.path)}",
    ]
    console.result({"depth_first": compared.table.to_dict("records"), "params": compared.params}, lines)
