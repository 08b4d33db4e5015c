"""Model and corpus in, report out: the stages of a run, one after the other, and none twice."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from moe_probe.core.extras import need_corpus_extra
from moe_probe.core.files import OutputKind, check_output_folder, disk_errors
from moe_probe.core.progress import Say, silent
from moe_probe.recording.collect.parts import Parts
from moe_probe.runs.config import RunConfig, dump_config
from moe_probe.runs.ledger import Ledger
from moe_probe.runs.stages import stages_of

#: Everything a run writes at its top level; --force removes these and nothing else.
WRITTEN = ("run.yaml", "trace", "sae", "results", "figures", "report.html", "report.md", "logs")
RUN_FOLDER = OutputKind("a run", "run.yaml")


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
        remove what an earlier run wrote and start over.
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
    check_output_folder(root, mode, RUN_FOLDER)
    with disk_errors(root):
        if mode == "force":
            _remove(root)
            Parts.of(root / "trace").remove()
        root.mkdir(parents=True, exist_ok=True)
        dump_config(config, root / "run.yaml")
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


def _remove(root: Path) -> None:
    for name in WRITTEN:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
