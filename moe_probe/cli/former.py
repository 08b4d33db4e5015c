"""Names that options had before: still understood, shown nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

#: Former names of options by command, with their names now.
FORMER: Mapping[str, Mapping[str, str]] = {
    "run": {"--layers": "--sae-layers", "--ablate-tokens": "--loss-tokens"},
    "train": {"--layers": "--sae-layers"},
    "eval": {"--tokens": "--loss-tokens"},
    "ablate": {"--tokens": "--loss-tokens"},
    "check": {"--tokens": "--corpus-tokens"},
    "find": {"--limit": "--top"},
    "models": {"--name": "--model-id"},
    "collect": {"--api-key-env": "--server-key-env"},
}


class ProbeCommand(TyperCommand):
    """A command that also understands the former names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line, former names replaced.

        Parameters
        ----------
        ctx : click.Context
        args : list of str

        Returns
        -------
        list of str
            Words that are left over.
        """
        return super().parse_args(ctx, renamed(args, FORMER.get(self.name or "", {})))


def renamed(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Replace former names of options, up to a bare ``--``.

    Parameters
    ----------
    words : sequence of str
        Of the command line, behind the command.
    names : mapping of str to str
        Former names, with the names now.

    Returns
    -------
    list of str
    """
    out: list[str] = []
    for i, word in enumerate(words):
        if word == "--":
            return [*out, *words[i:]]
        option, sign, value = word.partition("=")
        out.append(names.get(option, option) + sign + value)
    return out
