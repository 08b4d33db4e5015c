"""What a command that makes or analyses a run ends with: the short answers of the report, and the next command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe.core.text import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace


@dataclass(frozen=True)
class Ending:
    """The last lines of a command.

    Attributes
    ----------
    answers : tuple of (str, str)
        Questions and answers, as the report has them.
    products : list of str
        Lines that say where what was made is.
    then : str
        The next command.
    """

    answers: tuple[tuple[str, str], ...]
    products: list[str]
    then: str

    @property
    def lines(self) -> list[str]:
        """Lines for people: an answer each, then where it is and what to do next."""
        return [*(f"{question} {answer}" for question, answer in self.answers), *self.products, f"Next: {self.then}"]

    @property
    def data(self) -> dict[str, Any]:
        """The same for ``--json``."""
        return {"answers": [{"question": q, "answer": a} for q, a in self.answers], "next": self.then}


def ending(results: Mapping[str, Result], products: list[str], then: str) -> Ending:
    """Put the end of a command together.

    Parameters
    ----------
    results : mapping of str to Result
        Of the run.
    products : list of str
        Lines that say where what was made is.
    then : str
        The next command.

    Returns
    -------
    Ending
    """
    from moe_probe.report.sections.answers import answers

    return Ending(tuple((answer.question, answer.answer) for answer in answers(results)), products, then)


def after_run(trace: Trace, results: Mapping[str, Result], root: Path) -> str:
    """Name the command that adds most to a finished run: SAEs, then knock-outs, then single texts.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result
    root : Path
        Of the run.

    Returns
    -------
    str
    """
    run = shlex.quote(str(root))
    if "hidden" in trace.manifest.kept and "sae_quality" not in results:
        return f"moe-probe sae train {quoted(run)}"
    if "verdicts" in results and "ablation" not in results and results["verdicts"].table["experts"].astype(bool).any():
        return f"moe-probe ablate {quoted(run)}"
    return f'moe-probe inspect {quoted(run)} "any text"'
