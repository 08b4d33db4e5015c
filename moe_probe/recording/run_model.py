"""The model of a run, loaded again as it was loaded for the trace: in another dtype its weights are others.

A run folder may be somebody else's. What its ``run.yaml`` names is shown and read from this machine, and widens nothing: no
code of a checkpoint runs, nothing is fetched, no file or folder beside the model is touched, unless the caller says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError, UsageError, error_text
from moe_probe.core.links import refuse_settings_out
from moe_probe.core.progress import Say, silent
from moe_probe.core.schema import stored_dtype
from moe_probe.core.textfiles import read_text
from moe_probe.core.untrusted import check_depth, file_size
from moe_probe.models.placement import AUTOMATIC_MAPS
from moe_probe.models.settings import LoadOptions, ModelSettings, Placement

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel


#: Characters, and brackets of either kind, in a file of settings: yaml takes seconds for more.
_MOST_SETTINGS, _MOST_BRACKETS = 1 << 17, 250


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the sections of a ``run.yaml``.

    Raises
    ------
    UsageError
        When it is not YAML, or not a mapping, or has more values than settings can have.
    MoeProbeError
        When it lies in a run, and is a link out of it.
    """
    import yaml

    if not str(path).startswith(("/dev/fd/", "/dev/stdin")):  # what a shell hands over is a pipe there
        refuse_settings_out(Path(path))  # `run --config` of somebody else's run
        size = file_size(Path(path), hint="a YAML file of settings")
        if size > _MOST_SETTINGS:
            why = f"it has {size:,} bytes; settings have at most {_MOST_SETTINGS:,}"
            raise UsageError(f"{path} cannot be read", why, "a YAML file of settings")
    try:
        text = read_text(path)
        if max(text.count("["), text.count("{")) > _MOST_BRACKETS:  # a second for every thousand that are nested
            raise ValueError(f"it has more than {_MOST_BRACKETS:,} brackets")
        read = yaml.safe_load(text)
        check_depth(read, most=20, most_values=100_000)
    # beside its own errors, yaml raises what the values of tags, dates and long numbers do
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError, OverflowError, KeyError) as error:
        raise UsageError(f"{path} cannot be read", error_text(error), "a YAML file of settings") from error
    if not isinstance(read, dict):
        raise UsageError(f"{path} is not a list of settings", "", "lines such as `model: path/to/model`")
    return {str(name): value for name, value in read.items()}


def model_settings_of(run: Path, *, needed: bool = False) -> ModelSettings | None:
    """Read the section ``model`` of a run's ``run.yaml``.

    Parameters
    ----------
    run : Path
        Run directory, or a trace.
    needed : bool
        Whether a file that cannot be read is an error.

    Returns
    -------
    ModelSettings or None
        None without ``run.yaml``.

    Raises
    ------
    MoeProbeError
        Where `needed`, when the file cannot be read or does not name a model.
    """
    if not (run / "run.yaml").exists():
        return None
    try:
        settings = read_settings(run / "run.yaml")
        given = settings.get("model")
        if isinstance(given, str):  # written before settings had sections: its options stand beside it
            given = {"name": given} | {name: settings[name] for name in LoadOptions.model_fields if name in settings}
        if not isinstance(given, dict):
            raise UsageError(f"{run / 'run.yaml'} names no model", "its section model is no mapping", "--model MODEL")
        return ModelSettings(**given)
    except MoeProbeError:
        if needed:
            raise
        return None


def load_model_of(  # noqa: PLR0913 (keyword options with defaults)
    run: Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    placement: Mapping[str, Any] | None = None,
    say: Say = silent,
) -> LoadedModel | None:
    """Load the model that is named, or else that of ``run.yaml``.

    Dtype and devices are the run's own; the dtype is that of the trace where ``run.yaml`` names none. The run's own model is
    read from this machine only, and ``trust_remote_code`` in ``run.yaml`` is never obeyed.

    Parameters
    ----------
    run : Path
        Run directory, or a trace.
    name : str, optional
    revision : str, optional
        Branch, tag or commit, in place of the run's.
    trust_remote_code : bool
        Run Python code of the checkpoint.
    placement : mapping, optional
        Settings of `moe_probe.models.settings.Placement` to use in place of the run's.
    say : callable
        Gets a sentence with the model that is loaded, and who named it.

    Returns
    -------
    LoadedModel or None
        None where neither names a model.

    Raises
    ------
    MoeProbeError
        As `load_model` does, and where ``run.yaml`` cannot be read though it has to name the model.
    UsageError
        Where ``run.yaml`` names a file or folder beside the model, or a revision whose code was to run.
    """
    from moe_probe.models import load_model

    own = model_settings_of(run, needed=name is None)
    if name is None and own is None:
        return None
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": dtype_of(run), "download": name is not None}
    if own is not None:
        options |= {"experts_implementation": own.experts_implementation}
        if not placement:
            _refuse_paths(run, own)
            options |= own.model_dump(include=set(Placement.model_fields))
        if name in (None, own.name):
            options |= {"revision": own.revision}
    if revision is not None:
        options |= {"revision": revision}
    elif trust_remote_code and options.get("revision"):
        raise UsageError(
            f"{run / 'run.yaml'} names the revision {options['revision']}",
            "anybody can propose a revision, and its code would run",
            f"--revision {shlex.quote(options['revision'])}, if you trust its authors",
        )
    named = name or (own.name if own is not None else "")
    say(
        f"loading the model {named}"
        + (f" at revision {options['revision']}" if options.get("revision") else "")
        + (f", which {run / 'run.yaml'} names" if name is None else "")
        + (", with its own code" if trust_remote_code else "")
    )
    return load_model(named, progress=False, **options, **(placement or {}))


def _refuse_paths(run: Path, own: ModelSettings) -> None:
    """Refuse files and folders beside the model that ``run.yaml`` names: one would be read, the other written."""
    asked = {"--device-map": own.device_map, "--offload-folder": own.offload_folder}
    named = {flag: value for flag, value in asked.items() if value is not None and value not in AUTOMATIC_MAPS}
    if named:
        flag, path = next(iter(named.items()))
        raise UsageError(
            f"{run / 'run.yaml'} names {path} for {flag}",
            "files and folders beside the model are used only when the command names them",
            " ".join(f"{flag} {shlex.quote(value)}" for flag, value in asked.items() if value is not None),
        )


def dtype_of(run: Path) -> str:
    """Return the dtype that a run's trace was collected in, as `load_model` takes it: ``auto`` where it is not known."""
    from moe_probe.recording.trace import Trace

    own = model_settings_of(run)
    if own is not None and own.dtype != "auto":
        return own.dtype
    try:
        return stored_dtype(Trace.open(run).manifest.model)
    except MoeProbeError:
        return "auto"
