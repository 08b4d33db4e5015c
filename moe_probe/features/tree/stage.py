"""The stage `tree`: SAEs of rising width in, how their features split out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say
from moe_probe.core.results import Result
from moe_probe.core.stage import Stage
from moe_probe.features.stage import FeaturesStage
from moe_probe.features.tree.settings import TreeStageSettings
from moe_probe.recording.rundir import RunDirectory


@dataclass(frozen=True)
class TreeStage(Stage):
    """Join SAEs of rising width, breadth first, and train small dictionaries depth first where asked for."""

    name = "tree"
    features: FeaturesStage
    tree: TreeStageSettings

    @property
    @override
    def after(self) -> tuple[Stage, ...]:
        return (self.features,)

    @override
    def wanted(self) -> bool:
        sae = self.features.sae.sae
        levels = len(set(sae.widths)) > 1 or (bool(sae.widths) and sae.architecture == "matryoshka")
        return levels and (self.tree.tree or self.tree.depth_first)

    @override
    def settings(self) -> Any:
        return self.tree.model_dump()

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.features.tree import DepthFirstSettings, TreeSettings, build_tree, depth_first, iter_sae_ladders

        run, results = RunDirectory.open(root), list[Result]()
        gone: tuple[str, ...] = ()
        ladders = list(iter_sae_ladders(run))
        statistics, seed = self.features.statistics, self.features.seed
        settings = TreeSettings(by=statistics.by, alpha=statistics.alpha, seed=seed, strata=statistics.strata)
        if self.tree.tree:
            results += build_tree(run, settings=settings, ladders=ladders, say=say)
        if self.tree.depth_first:
            try:
                results += depth_first(run, DepthFirstSettings(tests=settings), ladders=ladders, say=say)
            except MoeProbeError as error:  # a small corpus has no feature with tokens enough; the run goes on without
                say(f"note: no dictionaries were trained depth-first: {error}")
                gone = ("depth_first", "depth_features")  # of other settings or another corpus
        return run.save(results, settings=asdict(settings), remove=gone)
