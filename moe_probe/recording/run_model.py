"""The model of a run, loaded again as it was loaded for the trace: in another type its weights are others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import stored_dtype

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.runs.config import RunConfig


def load_model_of(run: Path, name: str | None = None, *, trust_remote_code: bool = False) -> LoadedModel | None:
    """Load the model that is named, or else that of ``run.yaml``; None where there is neither.

    Type of weights and device are the run's own; the type is that of the trace where ``run.yaml`` names none.

    Parameters
    ----------
    run : Path
        Run directory, or a trace.
    name : str, optional
    trust_remote_code : bool
        Run Python code of the checkpoint; for the run's own model also where ``run.yaml`` allows it.

    Raises
    ------
    MoeProbeError
        As `load_model` does, and where ``run.yaml`` cannot be read though it has to name the model.
    """
    from moe_probe.models import load_model

    config = _config(run, needed=name is None)
    if name is None and config is None:
        return None
    own = config is not None and name in (None, config.model)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": dtype_of(run, config)}
    if config is not None:
        options["device"] = config.device
        if own:
            options |= {"revision": config.revision, "trust_remote_code": trust_remote_code or config.trust_remote_code}
    chosen = name or (config.model if config is not None else "")
    return load_model(chosen, progress=False, **options)


def dtype_of(run: Path, config: RunConfig | None = None) -> str:
    """Type of weights that a run's trace was collected in, as `load_model` takes it: ``auto`` where that is not known."""
    from moe_probe.recording.trace import Trace

    if config is None:
        config = _config(run, needed=False)
    if config is not None and config.dtype != "auto":
        return config.dtype
    try:
        return stored_dtype(Trace.open(run).manifest.model)
    except MoeProbeError:
        return "auto"


def _config(run: Path, *, needed: bool) -> RunConfig | None:
    from moe_probe.runs.config import load_config

    if not (run / "run.yaml").exists():
        return None
    try:
        return load_config(run / "run.yaml", {})
    except MoeProbeError:
        if needed:
            raise
        return None
