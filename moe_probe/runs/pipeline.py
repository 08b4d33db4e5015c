"""Model and corpus in, report out: the stages of a run, one after the other, and none twice."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.extras import need_corpus_extra
from moe_probe.core.files import RUN_FOLDER, check_output_folder, disk_errors
from moe_probe.core.lock import writing
from moe_probe.core.progress import Say, silent
from moe_probe.core.publication import settle
from moe_probe.recording.collect.parts import Parts
from moe_probe.runs.config import RunConfig, dump_config
from moe_probe.runs.ledger import Ledger
from moe_probe.runs.own_files import run_folder
from moe_probe.runs.stages import stages_of


@dataclass(frozen=True)
class RunOutcome:
    """Where a run's products are, and which stages had nothing to do."""

    root: Path
    report: Path
    skipped: tuple[str, ...]


def run(config: RunConfig, out: str | Path, *, mode: str = "new", say: Say = silent) -> RunOutcome:
    """Collect, analyse, train and label SAEs where the settings ask for them, and report.

    Parameters
    ----------
    config : RunConfig
    out : str or Path
        Run directory.
    mode : {"new", "resume", "force"}
        Refuse a folder that has anything in it; go on, skipping stages whose inputs and settings are unchanged; or
        remove what an earlier run wrote (all of it or, where one of its files is a link, none), and start over. What other
        people put into the folder stays.
    say : callable
        Takes a sentence for the person at the terminal.

    Returns
    -------
    RunOutcome

    Raises
    ------
    MoeProbeError
        In one sentence, whatever stage it comes from; earlier stages stay and are not repeated.
    """
    root = Path(out)
    config.check_labels()
    need_corpus_extra(config.corpus.source)
    with writing(root, RUN_FOLDER):
        check_output_folder(root, mode, run_folder(root))
        trace = root / "trace"
        # its lock is that of a trace collected alone, too; one that is elsewhere is only read
        with contextlib.nullcontext() if trace.is_symlink() else writing(trace):
            _begin(config, root, mode)
            try:
                return _stages(config, root, say)
            except MoeProbeError:
                with contextlib.suppress(MoeProbeError, OSError):  # what is said is why the run failed
                    _forget(root, mode)
                raise


def _begin(config: RunConfig, root: Path, mode: str) -> None:
    """Remove what an earlier run wrote, if that was asked for, all of it or none, and write the settings."""
    with disk_errors(root):
        if mode == "force":
            parts, own = Parts.of(root / "trace"), run_folder(root).own
            parts.check_removable()
            if own is not None:
                own.remove(root)
            parts.remove()
        settle(root / "results")  # a stage that is done writes nothing, and would leave what was interrupted as it is
        settle(root / "results" / "asked")
        root.mkdir(parents=True, exist_ok=True)
        dump_config(config, root / "run.yaml")


def _forget(root: Path, mode: str) -> None:
    """Remove a new run that nothing came of, such as one of a corpus that is not there: the next try is a new one again."""
    own = run_folder(root).own
    if mode == "new" and own is not None and {path.name for path in own.listed(root)} == {"run.yaml"}:
        own.remove(root)


def _stages(config: RunConfig, root: Path, say: Say) -> RunOutcome:
    ledger, skipped, redone = Ledger(root), list[str](), set[str]()
    for stage in stages_of(config):
        key = stage.key(root)
        if ledger.is_done(stage.name, key) and not stage.is_stale(redone):
            skipped.append(stage.name)
            say(f"{stage.name}: unchanged, skipped")
            continue
        redone.add(stage.name)
        started = time.monotonic()
        files = stage.run(root, say)
        seconds = time.monotonic() - started
        with disk_errors(root):
            ledger.record(stage.name, key, files, seconds=seconds)
        say(f"{stage.name}: done in {seconds:.1f} s")
    return RunOutcome(root, root / "report.html", tuple(skipped))
