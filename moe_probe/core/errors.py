"""Exceptions that the command line shows as one sentence instead of a traceback.

The tree, with the exit status of the command line:

- `MoeProbeError`: 1 an expected failure, or 3 a gate failed (something watched fired)

  - `UsageError`: 2 wrong usage, that is a wrong option or argument
  - `moe_probe.core.results.NoSuchResultError`, also a KeyError: a result that a run does not have (1)
  - `moe_probe.core.textfiles.BadLineError`: a line of a text file that cannot be read (1)
  - `moe_probe.recording.corpus.document.BadRowError`: a row of a corpus that cannot be used (1)
  - `moe_probe.recording.serving.client.UnansweredError`: a request that a serving engine gives no usable answer to (1)
  - `moe_probe.features.labels.endpoint.NoAnswerError`: a language model that gives no answer (1)

Any other exception is a fault of this package: its traceback goes to a log file, and the exit status is 1. Ctrl-C ends with 130.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Characters of each part of a message.
_LONGEST = 1200
_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")


def _shown(text: str) -> str:
    """Write a part of a message on one line, without control characters."""
    if text.isprintable() and len(text) <= _LONGEST:
        return text
    from moe_probe.core.text import printable

    return printable(_BREAKS.sub(" ", text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"))


class MoeProbeError(Exception):
    """Something the user can act on: what is wrong, why, and what to try.

    Parameters
    ----------
    what : str
        What went wrong, naming the file, layer, topic or option concerned.
    why : str
        Why that is a problem, or what was found instead.
    hint : str
        What the user can do about it: an option or a command that exists.
    exit_code : int
        Exit status of the command line: 1 expected failure, 2 wrong usage,
        3 a gate failed (something watched fired).
    """

    def __init__(self, what: str, why: str = "", hint: str = "", *, exit_code: int = 1) -> None:
        # names and values of strangers' files are part of messages: they must not forge lines of a terminal, nor fill it
        self.what, self.why, self.hint = _shown(what), _shown(why), _shown(hint)
        self.exit_code = exit_code
        super().__init__(str(self))

    def __str__(self) -> str:
        """Join the three parts to one sentence with a piece of advice, on one line: the parts may quote what others wrote."""
        from moe_probe.core.text import one_line

        text = self.what.rstrip(".")
        if self.why:
            text += f": {self.why.rstrip('.')}"
        if self.hint:
            text += f"{'' if text.endswith('?') else '.'} Try: {self.hint.rstrip('.')}"
        return one_line(text if text.endswith("?") else text + ".")


class UsageError(MoeProbeError):
    """A wrong option or argument (exit status 2)."""

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what, why, hint, exit_code=2)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Say which of the choices comes closest to a misspelt word.

    Parameters
    ----------
    word : str
    choices : iterable of str

    Returns
    -------
    str
        ``"did you mean 'chemistry'?"``, or the list of choices where none is close.
    """
    import difflib

    from moe_probe.core.text import some_of

    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"choose from: {some_of(choices, 12)}"


def error_text(error: object) -> str:
    """Return what a library says of an error, on one line of at most 300 characters; its type where it says nothing."""
    text = " ".join(str(error).split())
    return (text if len(text) <= 300 else f"{text[:299]}…") or type(error).__name__
