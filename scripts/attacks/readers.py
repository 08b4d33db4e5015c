"""Readers that are fuzzed: those of traces, runs and SAEs (`readers_runs`; `readers_signed` with checksums that fit), of inputs
(`readers_inputs`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A reader of files that someone else may have written.

    Attributes
    ----------
    name : str
    prepare : callable
        Makes a small valid input in an empty folder.
    read : callable
        Opens it and uses it as the program does: what a check at opening misses shows there. What it writes, it writes
        below ``folder.parent / "out"``.
    imports : tuple of str
        Modules that are imported once, before processes are forked.
    damaged : tuple of str
        Patterns of the files that are damaged, all by default.
    """

    name: str
    prepare: Callable[[Path], object]
    read: Callable[[Path], object]
    imports: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ("*",)


def uses(*ways: Callable[[], object]) -> None:
    """Use an input in several ways, whether or not one of them is refused; the first refusal is raised at the end."""
    from moe_probe.core.errors import MoeProbeError

    refused: list[MoeProbeError] = []
    for way in ways:
        try:
            way()
        except MoeProbeError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def readers() -> dict[str, Reader]:
    """All readers by name."""
    names = ("readers_runs", "readers_signed", "readers_inputs")
    modules = [importlib.import_module(f"attacks.{name}") for name in names]
    return {reader.name: reader for module in modules for reader in module.READERS}
