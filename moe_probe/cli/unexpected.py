"""What nobody foresaw: one sentence for the person, and the traceback in a log."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import clipped

#: Arguments of commands that name a run.
_RUNS = ("run", "run_path", "path", "out")
_LONGEST = 240


def sentence_of(error: BaseException, options: Mapping[str, Any]) -> MoeProbeError:
    """Write the traceback of an error into a log, and say in a sentence what happened and where the log lies.

    Parameters
    ----------
    error : BaseException
    options : mapping
        Values of the command's arguments by name: a run among them takes the log into its folder ``logs``.

    Returns
    -------
    MoeProbeError
    """
    log = _write(_report(error), options)
    where = f"the traceback is in {log}" if log is not None else "no log of it could be written"
    return MoeProbeError(f"the command ended in an unexpected error, {_in_words(error)}", where, _hint(error, options))


def _in_words(error: BaseException) -> str:
    text = clipped(" ".join(str(error).split()), _LONGEST)
    return f"{type(error).__name__}{f' ({text})' if text else ''}"


def _hint(error: BaseException, options: Mapping[str, Any]) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        flags = {"recording_batch_tokens": "--batch-tokens", "given_sae_batch_tokens": "--sae-batch-tokens"}
        smaller = next((f"a smaller {flag}, or " for name, flag in flags.items() if name in options), "")
        return f"{smaller}a machine with more memory"
    if isinstance(error, UnicodeDecodeError):
        return "check that every text file is in UTF-8"
    return "the same command with --debug shows the traceback here"


def _report(error: BaseException) -> str:
    from moe_probe import __version__

    lines = [
        f"command: {shlex.join(['moe-probe', *sys.argv[1:]])}",
        f"moe-probe {__version__}, Python {platform.python_version()}, {platform.platform()}",
    ]
    loaded = {name: sys.modules.get(name) for name in ("torch", "transformers", "numpy", "pandas", "pyarrow", "safetensors")}
    lines += [
        f"{name} {getattr(module, '__version__', '')}".rstrip() for name, module in loaded.items() if module is not None
    ]
    return "\n".join([*lines, "", "".join(traceback.format_exception(error))])


def _write(text: str, options: Mapping[str, Any]) -> Path | None:
    """Write the log into the run that the command is about, else among the temporary files; None where neither can be."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    folders = [run / "logs" for key in _RUNS if isinstance(run := options.get(key), Path) and _is_run(run)]
    for folder in (*folders[:1], None):
        try:
            path = folder / name if folder is not None else Path(tempfile.gettempdir()) / f"moe-probe-{name}"
            path.parent.mkdir(exist_ok=True)
            with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return None


def _is_run(path: Path) -> bool:
    if (path / "logs").is_symlink():  # of a stranger's folder: the log would be written elsewhere
        return False
    return (path / "run.yaml").exists() or (path / "trace" / "trace.json").exists()
