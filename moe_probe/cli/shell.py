"""What every command has in common: options, output, errors as one sentence, exit status."""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.unexpected import sentence_of
from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.files import disk_error
from moe_probe.core.progress import reraise_sigint, say_above, showing
from moe_probe.core.text import printable, some_of

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

_COMMON = "Common"
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.", rich_help_panel=_COMMON)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.", rich_help_panel=_COMMON)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only on stderr.", rich_help_panel=_COMMON)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_COMMON)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is there; finished parts are skipped.")]
Force = Annotated[bool, typer.Option("--force", help="Remove what an earlier run wrote and start over.")]


class Console:
    """Where a command's words go: people read stderr, programs stdout.

    Parameters
    ----------
    quiet, as_json : bool
        Values of ``--quiet`` and ``--json``.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        if quiet:
            warnings.simplefilter("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)

    @property
    def progress(self) -> bool:
        """Whether progress bars are wanted."""
        return not self.quiet

    def say(self, text: str) -> None:
        """Tell the person at the terminal, on stderr."""
        if not self.quiet:
            say_above(printable(text))

    def result(self, data: dict[str, Any], text: str) -> None:
        """Give the command's result on stdout: `data` with ``--json``, else `text`."""
        typer.echo(json.dumps(_numbers(data), indent=1, default=_plain) if self.as_json else printable(text))


def _numbers(value: Any) -> Any:
    """NaN and infinity as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def mode_of(*, resume: bool, force: bool) -> str:
    """Turn the two flags into a mode.

    Raises
    ------
    MoeProbeError
        When both are given.
    """
    if resume and force:
        raise MoeProbeError(
            "--resume and --force exclude each other", "one goes on, the other starts over", "one of the two", exit_code=2
        )
    return "resume" if resume else "force" if force else "new"


def need_label(trace: Trace, name: str | None, option: str) -> None:
    """Refuse, before anything is computed, a label that the documents do not have.

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


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its manners: a failure is one sentence, an interruption says how to go on.

    What was not foreseen leaves its traceback in a log, which the sentence names; ``--debug`` raises instead.

    Around each command and not around the program, because typer ends an interrupted program by itself.
    """

    @wraps(command)
    def run(*words: Any, **options: Any) -> None:
        try:
            with showing(not options.get("quiet", False)), reraise_sigint(), _noted():
                command(*words, **options)
        except MoeProbeError as error:
            if options.get("debug"):
                raise
            typer.echo(f"moe-probe: {printable(str(error))}", err=True)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has left; nothing is wrong
            sys.exit(0)
        except KeyboardInterrupt:
            _interrupted()
        except BaseException as error:  # native code panics with exceptions of its own below BaseException
            if options.get("debug") or _meant(error):
                raise
            told = _refused(error) if isinstance(error, OSError) else None
            told = told or sentence_of(error, options)
            typer.echo(f"moe-probe: {printable(str(told))}", err=True)
            sys.exit(told.exit_code)

    return run


def _meant(error: BaseException) -> bool:
    """Whether somebody ends the program by this: a system exit, or what typer raises for wrong usage and refusals."""
    return isinstance(error, SystemExit | GeneratorExit | typer.Exit | typer.Abort) or hasattr(error, "format_message")


@contextmanager
def _noted() -> Iterator[None]:
    """Say what figures lack as a note, without the place in the program that noticed it."""
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if category.__name__ == "FontWarning":  # by name: matplotlib is not loaded for it
            typer.echo(f"note: {message}", err=True)
        else:
            before(message, category, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _refused(error: OSError) -> MoeProbeError | None:
    """What the disk refused, wherever a command was writing or reading; None for anything else."""
    return disk_error(error, error.filename or "a file", verb="read or written", keeps="what was already written is kept")


def _interrupted() -> None:
    import shlex
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second press should not turn the orderly end into a crash
    words = [w for w in sys.argv[1:] if w not in ("--force", "--resume")]
    if words and (words[0] in ("run", "demo", "collect", "import") or words[:2] == ["sae", "train"]):
        command = shlex.join(["moe-probe", *words, "--resume"])
        typer.echo(f"\nmoe-probe: interrupted; what was written is kept. To go on: {command}", err=True)
    else:
        typer.echo("\nmoe-probe: interrupted.", err=True)
    sys.exit(130)
