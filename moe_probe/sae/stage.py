"""The stage `sae`: activations of a trace in, SAE folders out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.progress import Say
from moe_probe.core.stage import Stage
from moe_probe.core.workers.settings import IN_THIS_PROCESS, WorkerSettings
from moe_probe.recording.rundir import RunDirectory
from moe_probe.sae.settings import SaeSettings


@dataclass(frozen=True)
class SaeStage(Stage):
    """Train the SAEs that the settings name."""

    name = "sae"
    sae: SaeSettings
    device: str
    seed: int
    #: Where it is done, which changes nothing of what comes out.
    workers: WorkerSettings = IN_THIS_PROCESS

    @override
    def wanted(self) -> bool:
        return bool(self.sae.widths)

    @override
    def settings(self) -> Any:
        return [self.sae.model_dump(), self.device, self.seed]

    @override
    def inputs(self, root: Path) -> Iterable[Path]:
        return [root / "trace" / "trace.json"]

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.sae.training.ray_layers import train_where
        from moe_probe.sae.training.request import TrainRequest

        request = TrainRequest(self.sae, seed=self.seed, device=self.device, mode="resume")
        folders = train_where(RunDirectory.open(root), request, workers=self.workers, say=say)
        return [folder / name for folder in folders for name in ("cfg.json", "sae_weights.safetensors")]
