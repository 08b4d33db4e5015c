"""The stage `ablate`: the model and the run's verdicts in, changes of the loss out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say
from moe_probe.core.stage import Stage, result_files
from moe_probe.features.matching.stage import MatchStage
from moe_probe.recording.rundir import RunDirectory
from moe_probe.studies.ablation.settings import AblationStageSettings


@dataclass(frozen=True)
class AblateStage(Stage):
    """Knock out the units that verdicts rest on, and complete the verdicts with it."""

    name = "ablate"
    match: MatchStage
    ablation: AblationStageSettings

    @property
    @override
    def after(self) -> tuple[Stage, ...]:
        return (self.match,) if self.match.wanted() else (self.match.features.analyze,)

    @override
    def wanted(self) -> bool:
        return bool(self.ablation.ablate)

    @override
    def settings(self) -> Any:
        return self.ablation.model_dump()

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.models import load_model
        from moe_probe.studies.ablation import AblationSettings, ablate_run
        from moe_probe.studies.verdicts import update_verdicts

        of, files = self.match.features, result_files(root, ["ablation"])
        loaded = load_model(of.model.name, progress=False, **of.model.load_options())
        how, tokens = self.ablation.ablate, self.ablation.ablate_tokens
        settings = AblationSettings(by=of.statistics.by, how=how, tokens=tokens, seed=of.seed)
        run = RunDirectory.open(root)
        try:
            update_verdicts(run, [ablate_run(run, loaded, settings=settings, say=say)], settings=asdict(settings))
        except MoeProbeError as error:  # a small corpus may have no unit to knock out or one topic held out; the run goes on
            say(f"note: nothing was knocked out: {error}")
            update_verdicts(run, remove=["ablation"])  # of other settings: its numbers must not enter these verdicts
        return [path for path in files if path.exists()]
