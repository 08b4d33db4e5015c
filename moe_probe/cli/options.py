"""Commands from functions: their options are made from the annotations of the function's parameters.

- a settings class (`moe_probe.core.settings.Settings`): an option for every field; the function gets an instance;
- `Sections`: an option for every field of every section of a run's configuration; it gets those given, by section;
- `Mode`: ``--resume`` and ``--force``; it gets "new", "resume" or "force";
- `Console`: ``--json``, ``--quiet`` and ``--debug``;
- anything else is an option or argument as typer takes it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType

import typer
from pydantic.fields import FieldInfo

from moe_probe.cli.console import Console
from moe_probe.cli.former import ProbeCommand
from moe_probe.cli.guard import guarded
from moe_probe.core.errors import UsageError
from moe_probe.core.settings import Settings, flag_of, limits_of, parse_numbers

Mode = Literal["new", "resume", "force"]
#: Settings that were given on the command line, by section of the configuration and name.
Sections = NewType("Sections", dict[str, dict[str, Any]])

_COMMON = "Common"
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.", rich_help_panel=_COMMON)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
Strata = Annotated[
    str | None,
    typer.Option(
        "--strata",
        help="Label column within which documents are permuted; none: among all [default: as the run was analyzed].",
        show_default=False,
    ),
]
_CONSOLE = {
    "as_json": ("Machine-readable result on stdout.", ("--json",)),
    "quiet": ("Errors only on stderr.", ("--quiet", "-q")),
    "debug": ("Show the traceback of an error.", ("--debug",)),
}
_MODE = {
    "resume": "Go on with what is there; finished parts are skipped.",
    "force": "Remove what an earlier run wrote and start over.",
}


def writes_run(**given: Any) -> Path | None:
    """Name the folder whose lock a command on a run holds.

    Parameters
    ----------
    **given
        Arguments of the command by name; `run` is the folder.

    Returns
    -------
    Path or None
        None where there is no run: the command itself says more about that.
    """
    run: Path = given["run"]
    return run if run.is_dir() else None


def command(
    app: typer.Typer, name: str, *examples: str, leave_out: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command.

    Parameters
    ----------
    app : typer.Typer
    name : str
        Of the command.
    *examples : str
        Shown at the end of its help; from the second on with what they show before a colon.
    leave_out : collection of str
        Sections or fields without an option in this command.

    Returns
    -------
    callable
        Decorator.
    """
    epilog = "Example: " + "\n\n".join(examples)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name, cls=ProbeCommand, epilog=epilog)(guarded(_expanded(function, set(leave_out))))
        return function

    return register


def _expanded(function: Callable[..., None], leave_out: set[str]) -> Callable[..., None]:
    """Replace the parameters that stand for several options by these."""
    own = inspect.signature(function, eval_str=True).parameters
    shown: list[inspect.Parameter] = []
    origins: dict[str, dict[str, _Origin]] = {}  # by parameter of the function and of the option
    for parameter in own.values():
        kind = parameter.annotation
        if kind is Console:
            shown += [_flag(name, flags, text, panel=_COMMON) for name, (text, flags) in _CONSOLE.items()]
        elif kind is Mode:
            shown += [_flag(name, (f"--{name}",), text) for name, text in _MODE.items()]
        elif kind is Sections or (isinstance(kind, type) and issubclass(kind, Settings)):
            options, origins[parameter.name] = _options(kind, leave_out)
            shown += options
        else:
            shown.append(parameter)

    @wraps(function)
    def run(**given: Any) -> None:
        function(**{name: _value(parameter, given, origins.get(name)) for name, parameter in own.items()})

    run.__signature__ = inspect.Signature(sorted(shown, key=lambda p: p.kind))  # type: ignore[attr-defined]
    return run


def _value(parameter: inspect.Parameter, given: Mapping[str, Any], origins: Mapping[str, _Origin] | None) -> Any:
    """Make what the function gets for a parameter from the options that were given."""
    kind = parameter.annotation
    if kind is Console:
        return Console(quiet=given["quiet"], as_json=given["as_json"])
    if kind is Mode:
        return _mode(resume=given["resume"], force=given["force"])
    if origins is None:
        return given[parameter.name]
    sections = _given(origins, given)
    return sections if kind is Sections else kind(**next(iter(sections.values()), {}))


def _options(kind: Any, leave_out: set[str]) -> tuple[list[inspect.Parameter], dict[str, _Origin]]:
    """Make an option of every setting, and note what it sets."""
    shown, origins = [], {}
    for section, settings in _sections(kind).items():
        for name, field in settings.model_fields.items():
            flag = flag_of(settings, name)
            if flag and not {section, name} & leave_out:
                origins[f"{section}_{name}"] = _Origin(section, name, flag, _is_numbers(field))
                shown.append(_option(f"{section}_{name}", flag, field, settings.panel))
    return shown, origins


def _sections(kind: Any) -> dict[str, type[Settings]]:
    if kind is not Sections:
        return {"given": kind}
    from moe_probe.runs.config import SECTIONS

    return SECTIONS


class _Origin(NamedTuple):
    """Setting behind an option."""

    section: str
    name: str
    flag: str
    numbers: bool


def _is_numbers(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is tuple and typing.get_args(field.annotation) == (int, ...)


def _given(options: Mapping[str, _Origin], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Gather the settings that were given, by section."""
    sections: dict[str, dict[str, Any]] = {}
    for parameter, origin in options.items():
        value = given[parameter]
        if value is not None and value != []:
            value = parse_numbers(origin.flag, value) if origin.numbers else value
            sections.setdefault(origin.section, {})[origin.name] = value
    return sections


def _mode(*, resume: bool, force: bool) -> Mode:
    if resume and force:
        raise UsageError("--resume and --force exclude each other", "one goes on, the other starts over", "one of the two")
    return "resume" if resume else "force" if force else "new"


def _flag(name: str, flags: tuple[str, ...], text: str, panel: str | None = None) -> inspect.Parameter:
    info = typer.Option(*flags, help=text, rich_help_panel=panel)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, info])


def _option(parameter: str, flag: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """Make the option of a setting; its default is None, so that what was given is known."""
    kind, default = field.annotation, field.default
    text = field.description or ""
    help_text = text[:1].upper() + text[1:] + limits_of(field) + _default(default) + "."
    if kind is bool and default is True and "/" not in flag:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    info: dict[str, Any] = {"help": help_text, "rich_help_panel": panel or None, "show_default": False}
    if _is_numbers(field):
        kind, info = list[str], info | {"metavar": "LIST"}
    annotation: Any = Annotated[_bare(kind) | None, typer.Option(flag, **info)]
    return inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _default(default: Any) -> str:
    if default is None or default is False or default in ((), ""):
        return ""
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else "on" if default is True else default
    shown = f"{shown:g}" if isinstance(shown, float) else shown
    return f" [default: {shown}]"


def _bare(annotation: Any) -> Any:
    """``str | None`` as str, ``tuple[X, ...]`` as list[X]: what an option can be."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple and typing.get_args(annotation)[-1] is Ellipsis:
        return list[typing.get_args(annotation)[0]]  # type: ignore[misc]
    return annotation
