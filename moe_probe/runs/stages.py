"""The stages of a run, in their order: the one place that knows it."""

from __future__ import annotations

from moe_probe.core.stage import Stage
from moe_probe.features.matching.stage import MatchStage
from moe_probe.features.stage import FeaturesStage
from moe_probe.features.tree.stage import TreeStage
from moe_probe.recording.collect.stage import CollectStage
from moe_probe.report.stage import ReportStage
from moe_probe.runs.config import RunConfig
from moe_probe.sae.stage import SaeStage
from moe_probe.studies.ablation.stage import AblateStage
from moe_probe.studies.cost.stage import CostStage
from moe_probe.studies.stage import AnalyzeStage
from moe_probe.studies.verdicts.stage import VerdictsStage


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Stages that a configuration asks for, in the order in which they are done."""
    collect = CollectStage(config.model, config.corpus, config.collect_options(), config.workers)
    analyze = AnalyzeStage(config.statistics, config.model, config.seed)
    sae = SaeStage(config.sae, config.model.device, config.seed, config.workers)
    features = FeaturesStage(analyze, sae, config.statistics, config.model, config.seed)
    match = MatchStage(features)
    tree = TreeStage(features, config.tree)
    ablate = AblateStage(match, config.ablation)
    work = (collect, analyze, sae, features, match, VerdictsStage(match), tree, ablate)
    stages = (*work, CostStage(work, config.model), ReportStage())
    return tuple(stage for stage in stages if stage.wanted())
