"""Options made from `RunConfig`: each setting has one definition, for files, calls and flags alike."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection
from functools import wraps
from typing import Annotated, Any

import typer

from moe_probe.runs.config import RunConfig

#: Settings with a place of their own in the commands.
_OWN = {"model", "corpus", "seed"}


def with_settings(function: Callable[..., None], *, leave_out: Collection[str] = ()) -> Callable[..., None]:
    """Add an option for every setting; the function gets those that were given as ``settings``.

    Parameters
    ----------
    function : callable
        A command with a keyword-only parameter ``settings: dict``.
    leave_out : collection of str
        Settings, or help panels, that do not concern the command.
    """
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "settings"]
    options = [
        _option(name)
        for name, field in RunConfig.model_fields.items()
        if name not in _OWN and name not in leave_out and _panel(name) not in leave_out
    ]

    @wraps(function)
    def command(**given: Any) -> None:
        settings = {o.name: given.pop(o.name) for o in options}
        function(**given, settings={k: v for k, v in settings.items() if v is not None and v != []})

    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return command


def _panel(name: str) -> str:
    extra = RunConfig.model_fields[name].json_schema_extra
    return str(extra["panel"]) if isinstance(extra, dict) else ""


def _option(name: str) -> inspect.Parameter:
    field = RunConfig.model_fields[name]
    kind = _bare(field.annotation)
    flag = f"--{name.replace('_', '-')}"
    default = field.default
    text = (field.description or "") + ("" if default in (None, False, ()) else f" [default: {default}]")
    info = typer.Option(flag, help=text, rich_help_panel=_panel(name), show_default=False)
    annotation: Any = Annotated[kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _bare(annotation: Any) -> Any:
    """``str | None`` as str, ``tuple[X, ...]`` as list[X]: what an option can be."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return list[typing.get_args(annotation)[0]]  # type: ignore[misc]
    return annotation
