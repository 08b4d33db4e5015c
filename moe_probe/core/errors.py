"""The one exception that the command line turns into a sentence instead of a traceback."""

from __future__ import annotations


class MoeProbeError(Exception):
    """Something the user can act on: what is wrong, why, and what to try.

    Parameters
    ----------
    what : str
        What went wrong, naming the file, layer, topic or option concerned.
    why : str
        Why that is a problem, or what was found instead.
    try_ : str
        What the user can do about it.
    exit_code : int
        Exit status of the command line: 1 expected failure, 2 wrong usage, 3 gate failed.
    """

    def __init__(self, what: str, why: str = "", try_: str = "", *, exit_code: int = 1) -> None:
        self.what, self.why, self.try_, self.exit_code = what, why, try_, exit_code
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what.rstrip(".")
        if self.why:
            text += f": {self.why.rstrip('.')}"
        if self.try_:
            text += f"{'' if text.endswith('?') else '.'} Try: {self.try_.rstrip('.')}"
        return text if text.endswith("?") else text + "."


class UsageError(MoeProbeError):
    """A wrong option or argument (exit status 2)."""

    def __init__(self, what: str, why: str = "", try_: str = "") -> None:
        super().__init__(what, why, try_, exit_code=2)


def did_you_mean(word: str, choices: list[str]) -> str:
    """Say which of the choices comes closest to a misspelt word.

    Returns
    -------
    str
        ``"did you mean 'chemistry'?"``, or the list of choices where none is close.
    """
    import difflib

    close = difflib.get_close_matches(word, choices, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"choose from: {shown}"
