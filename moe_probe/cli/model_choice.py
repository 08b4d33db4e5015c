"""The model that a command needs beside a run: the one named, else the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.cli.console import Console
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.settings import Settings, setting

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel


class ModelChoice(Settings):
    """Options that choose a model."""

    model: str | None = setting(None, "the trace's model; by default that of run.yaml")
    trust_remote_code: bool = setting(False, "run Python code that comes with --model")

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
        from moe_probe.recording.run_model import load_model_of

        loaded = load_model_of(run, self.model, trust_remote_code=self.trust_remote_code)
        if loaded is None:
            console.say(f"note: no model was named, {without} (--model MODEL)")
        return loaded

    def need(self, run: Path, nothing: str) -> LoadedModel:
        """Load it, or refuse.

        Parameters
        ----------
        run : Path
            Run directory.
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
        from moe_probe.recording.run_model import load_model_of

        loaded = load_model_of(run, self.model, trust_remote_code=self.trust_remote_code)
        if loaded is None:
            raise MoeProbeError(nothing, "no model was named and the run has no run.yaml", "--model MODEL")
        return loaded
