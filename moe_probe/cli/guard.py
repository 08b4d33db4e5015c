"""How every command ends: a failure is one sentence, an interruption says how to go on, the exit status is one of a few."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from moe_probe.cli.unexpected import sentence_of
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_error
from moe_probe.core.interrupt import reraise_sigint
from moe_probe.core.links import refuse_links_out
from moe_probe.core.progress import say_above, showing
from moe_probe.core.text import one_line

#: Arguments of commands that name a folder of a run, a trace or an SAE.
_FOLDERS = ("run", "run_path", "path", "runs", "traces", "source", "add", "records", "out")


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its manners: a failure is one sentence, an interruption says how to go on.

    What was not foreseen leaves its traceback in a log, which the sentence names; ``--debug`` raises instead.

    Around each command and not around the program, because typer ends an interrupted program by itself.
    """

    @wraps(command)
    def run(*words: Any, **options: Any) -> None:
        try:
            with (
                showing(not options.get("quiet", False)),
                reraise_sigint(),
                _warnings(quiet=options.get("quiet", False)),
            ):
                _check_folders(options)
                command(*words, **options)
        except MoeProbeError as error:
            if options.get("debug"):
                raise
            typer.echo(f"moe-probe: {error}", err=True)
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
            typer.echo(f"moe-probe: {told}", err=True)
            sys.exit(told.exit_code)

    return run


def _check_folders(options: Mapping[str, Any]) -> None:
    """Refuse folders of strangers with links out of them, before any command reads or writes there."""
    for name in _FOLDERS:
        given = options.get(name)
        for folder in given if isinstance(given, list) else [given]:
            if not isinstance(folder, Path) or (name == "out" and options.get("force")):
                continue  # --force removes links as links
            trace = refuse_links_out(folder, trace=not (name == "out" and options.get("resume")))
            if trace is not None and not options.get("quiet", False):
                say_above(f"note: the trace of {folder} lies in {trace}")


def _meant(error: BaseException) -> bool:
    """Whether somebody ends the program by this: a system exit, or what typer raises for wrong usage and refusals."""
    return isinstance(error, SystemExit | GeneratorExit | typer.Exit | typer.Abort) or hasattr(error, "format_message")


@contextmanager
def _warnings(*, quiet: bool) -> Iterator[None]:
    """Show what figures lack as a note, without the line of the program that noticed it; show nothing when quiet."""
    logging.getLogger("transformers").setLevel(logging.ERROR)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="Figures show boxes")  # a note, also where warnings are errors
        if quiet:
            warnings.simplefilter("ignore")
        plain = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if category.__name__ == "FontWarning":  # by name: matplotlib is not loaded for it
                typer.echo(one_line(f"note: {message}"), err=True)
            else:
                plain(message, category, *rest, **named)

        warnings.showwarning = show
        yield


def _refused(error: OSError) -> MoeProbeError | None:
    """Describe what the disk refused, wherever a command was writing or reading; None for anything else."""
    return disk_error(error, error.filename or "a file", verb="read or written", keeps="what was already written is kept")


def _interrupted() -> None:
    import shlex
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second press should not turn the orderly end into a crash
    words = [w for w in sys.argv[1:] if w not in ("--force", "--resume")]
    if words and (words[0] in ("run", "demo", "collect", "import") or words[:2] == ["sae", "train"]):
        command = shlex.join(["moe-probe", *words, "--resume"])
        typer.echo(f"\nmoe-probe: interrupted; what was written is kept. To go on: {one_line(command)}", err=True)
    else:
        typer.echo("\nmoe-probe: interrupted.", err=True)
    sys.exit(130)
