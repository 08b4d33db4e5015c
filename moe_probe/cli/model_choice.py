"""The model that a command needs beside a run: the one named, else the run's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.cli.console import Console
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.settings import setting
from moe_probe.models.settings import ModelSettings, Placement

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel


def serve_first_process(settings: ModelSettings) -> None:
    """In the further processes of torchrun, compute their part of a model that is split; does not return there.

    Parameters
    ----------
    settings : ModelSettings
    """
    if settings.tp_plan is not None and os.environ.get("RANK", "0") != "0":
        from moe_probe.models import load_model

        load_model(settings.name, progress=False, **settings.load_options())


class ModelChoice(Placement):
    """Options that choose a model, and where it goes: by default where the run's model went."""

    model: str | None = setting(None, "the trace's model; by default that of run.yaml")
    revision: str | None = setting(None, "branch, tag or commit of the model; by default that of run.yaml")
    trust_remote_code: bool = setting(False, "run Python code that comes with the model; run.yaml cannot ask for it")

    def placement(self) -> dict[str, Any]:
        """Return what was said about devices; empty where nothing was."""
        return self.model_dump(include=set(Placement.model_fields) & self.model_fields_set)

    def load(self, run: Path, console: Console, *, without: str) -> LoadedModel | None:
        """Load it.

        Parameters
        ----------
        run : Path
            Run directory.
        console : Console
        without : str
            What is not done without a model, for the note.

        Returns
        -------
        LoadedModel or None
            None where neither the option nor ``run.yaml`` names one.
        """
        loaded = self._load(run, console)
        if loaded is None:
            console.say(f"note: no model was named, {without} (--model MODEL)")
        return loaded

    def need(self, run: Path, console: Console, nothing: str) -> LoadedModel:
        """Load it, or refuse.

        Parameters
        ----------
        run : Path
            Run directory.
        console : Console
        nothing : str
            What cannot be done without a model.

        Returns
        -------
        LoadedModel

        Raises
        ------
        MoeProbeError
            Where neither the option nor ``run.yaml`` names one.
        """
        loaded = self._load(run, console)
        if loaded is None:
            raise MoeProbeError(nothing, "no model was named and the run has no run.yaml", "--model MODEL")
        return loaded

    def _load(self, run: Path, console: Console) -> LoadedModel | None:
        from moe_probe.recording.run_model import load_model_of

        return load_model_of(
            run,
            self.model,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            placement=self.placement(),
            say=console.say,
        )
