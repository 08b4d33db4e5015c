"""Wrong usage as one sentence with a suggestion, and what every command's help ends with."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import typer

from moe_probe.core.errors import UsageError
from moe_probe.core.text import one_line


def run_app(app: typer.Typer) -> int:
    """Run the program on ``sys.argv``; wrong usage is told in one sentence.

    Returns
    -------
    int
        Exit status: 2 for wrong usage.
    """
    try:
        status = app(standalone_mode=False, prog_name="moe-probe")
    except typer.Abort:
        typer.echo("moe-probe: stopped; nothing was done.", err=True)
        return 1
    except Exception as error:
        # what typer raises for wrong usage has this method whichever click it brings along
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True, nl=bool(error.format_message()))
        else:
            typer.echo(f"moe-probe: {one_line(usage_sentence(error, typer.main.get_command(app)))}", err=True)
        return int(getattr(error, "exit_code", 2))
    return int(status or 0)


def usage_sentence(error: Any, root: Any) -> str:
    """Say what is wrong with the words of a command, what may have been meant, and what to try.

    Parameters
    ----------
    error : Exception
        Raised by typer for wrong usage.
    root : click.Command
        The program.

    Returns
    -------
    str
    """
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "moe-probe"
    message = error.format_message().splitlines()[0]
    if type(error).__name__ == "NoSuchOption":
        known = [o for p in context.command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
        return str(
            UsageError(f"{path} has no option {error.option_name}", _meant(error.option_name, known), f"{path} --help")
        )
    if message.startswith("No such command '"):
        group = tuple(path.split()[1:])
        word = " ".join((*group, message.split("'")[1]))
        inside = [" ".join(words) for words, _ in commands(root) if words[: len(group)] == group]
        return str(UsageError(f"there is no command '{word}'", _meant(word, inside), f"{path} --help"))
    missing = type(error).__name__ == "MissingParameter"
    example = example_of(context.command) if missing and context is not None else ""
    return str(UsageError(message[:1].lower() + message[1:], "", example or f"{path} --help"))


def _meant(word: str, known: list[str]) -> str:
    """Which of the known words may have been meant: one that begins so, looks alike, or ends in a word that looks alike."""
    bare = word.lstrip("-")
    near = [k for k in known if bare and k.lstrip("-").startswith(bare)] or difflib.get_close_matches(word, known, n=1)
    if not near:
        last = {k.split()[-1]: k for k in known}
        near = [last[w] for w in difflib.get_close_matches(bare, list(last), n=1)]
    return f"did you mean '{near[0]}'?" if near else ""


def commands(root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words: ``("sae", "train")``."""
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from (((name, *words), inner) for words, inner in commands(command))
        else:
            yield (name,), command


def example_of(command: Any) -> str:
    """Return the example in a command's help, ``""`` where there is none."""
    first = (getattr(command, "epilog", None) or "").strip().partition("\n")[0]
    return first.removeprefix("Example: ").strip() if first.startswith("Example: ") else ""


def document_exit_status(app: typer.Typer) -> None:
    """End the help of every command with its exit status."""
    for info in app.registered_commands:
        names = inspect.signature(info.callback).parameters if info.callback is not None else {}
        gate = ", 3 a gate failed (something watched fired)" if "given_watch" in names else ""
        resumes = " (--resume goes on)" if "resume" in names else ""
        info.epilog = (
            f"{info.epilog or ''}\n\nExit status: 0 done, 1 it could not be done, 2 wrong usage{gate}, "
            f"130 interrupted{resumes}."
        )
    for group in app.registered_groups:
        if group.typer_instance is not None:
            document_exit_status(group.typer_instance)
