"""Where the words of a command go, and checks that commands share."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import typer

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.progress import say_above
from moe_probe.core.text import one_line, some_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moe_probe.recording.trace import Trace


class Console:
    """Where a command's words go: people read stderr, programs stdout.

    Parameters
    ----------
    quiet, as_json : bool
        Values of ``--quiet`` and ``--json``.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json

    def say(self, text: str) -> None:
        """Tell the person at the terminal, on stderr."""
        if not self.quiet:
            say_above(text)

    def notes(self, warnings: Iterable[str]) -> None:
        """Show what weakens a result."""
        for warning in warnings:
            self.say(f"note: {warning}")

    def result(self, data: dict[str, Any], lines: str | Iterable[str]) -> None:
        """Give the command's result on stdout.

        Parameters
        ----------
        data : dict
            With ``--json``.
        lines : str or iterable of str
            Without: a line, or several. A line break inside one is not ours, and is shown by its code.
        """
        if self.as_json:
            typer.echo(json.dumps(_numbers(data), indent=1, default=_plain))
            return
        typer.echo("\n".join(map(one_line, [lines] if isinstance(lines, str) else lines)))


def _numbers(value: Any) -> Any:
    """NaN and infinity as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def need_label(trace: Trace, name: str | None, option: str) -> None:
    """Refuse, before anything is computed, a label column that the documents do not have.

    Parameters
    ----------
    trace : Trace
    name : str, optional
    option : str
        That named it.

    Raises
    ------
    UsageError
        Naming the one that may have been meant.
    """
    labels = [str(c) for c in trace.documents.columns if c not in ("document", "n_tokens")]
    if name is not None and name not in labels:
        raise UsageError(
            f"{option} {name} names no label of the documents",
            did_you_mean(name, labels),
            f"{option} with one of {some_of(labels, 12)}",
        )
