"""One writer at a time for a folder: a run, a trace, a comparison.

The lock is held by the operating system, so that it is free in the moment in which its holder dies. Where the file system has
no locks, a claim that its holder renews takes their place. Whoever comes second is told who writes; readers never ask.
Inside one process the lock can be taken again, so that a run can call what takes it by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import RUN_FOLDER, TRACE_FOLDER, OutputKind, check_folder_path, disk_errors
from moe_probe.core.holder import HOLDER, read_holder, write_holder
from moe_probe.core.own_files import LOCK_PREFIX

if TYPE_CHECKING:
    from filelock import BaseFileLock

P = ParamSpec("P")
Returned = TypeVar("Returned")
#: The file that is locked.
LOCK = f"{LOCK_PREFIX}lock"
#: Answers of file systems that have no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
#: Seconds to wait for a lock: one that is given back at this moment is no reason to refuse.
_PATIENCE = 0.25
#: Seconds after which a claim without a sign of life is taken over, where the file system has no locks.
_LEASE = 30.0


class LockedError(MoeProbeError):
    """Another process writes to the folder."""


@dataclass
class _Held:
    """A lock of this process.

    Attributes
    ----------
    lock : BaseFileLock
    made : list of Path
        Folders that were made for it, the innermost last.
    inode : int or None
        Of the locked file; None where it is no lock of the operating system.
    count : int
        How often it was taken.
    """

    lock: BaseFileLock
    made: list[Path]
    inode: int | None
    count: int = 1


_guard = threading.RLock()
#: By process, since a forked child has the memory of its parent but not its locks.
_held: dict[tuple[int, Path], _Held] = {}


@contextlib.contextmanager
def writing(root: str | Path, kind: OutputKind = TRACE_FOLDER) -> Iterator[None]:
    """Be the only process that writes to a folder, inside a ``with`` block.

    Parameters
    ----------
    root : str or Path
        The folder; it is made where it is missing, and removed again where nothing was written to it.
    kind : OutputKind
        What it is, for messages.

    Yields
    ------
    None

    Raises
    ------
    LockedError
        When another process writes to it: with its host, number, command and start.
    MoeProbeError
        When there is a file at the path, or the folder may not be written to.
    """
    path = Path(root).absolute()
    key = _take(path, Path(root), kind)
    try:
        yield
    finally:
        _give_back(key)


def _take(path: Path, shown: Path, kind: OutputKind) -> tuple[int, Path]:
    with _guard, disk_errors(shown, keeps="nothing was changed"):
        check_folder_path(path, kind)
        _check_links(path, kind)
        key = os.getpid(), path.resolve()
        if key in _held:
            _held[key].count += 1
            return key
        folder = key[1]
        for _ in range(5):
            made = _make(folder)
            try:
                lock, inode = _locked(folder, shown, kind)
            except FileNotFoundError:  # another process, which had made the folder too, has just removed it
                continue
            _held[key] = _Held(lock, made, inode)
            try:
                write_holder(folder)
            except BaseException:
                _give_back(key)
                raise
            return key
        raise MoeProbeError(f"{shown} cannot be written", "its folder is removed again and again", "another --out")


def _check_links(root: Path, kind: OutputKind) -> None:
    """Refuse to write through a link that came with the folder: what is behind it was never named by the user."""
    for name in kind.inside:
        path = root / name
        if path.is_symlink():
            raise MoeProbeError(
                f"{path} is a link to {path.readlink()}",
                f"what is written stays inside {kind.noun}; nothing was changed",
                "replace the link by the folder that it leads to",
            )


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were made."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _locked(folder: Path, shown: Path, kind: OutputKind) -> tuple[BaseFileLock, int | None]:
    """Take the lock, or say who has it; with the inode of the locked file where the system holds it."""
    from filelock import Timeout

    path = folder / LOCK
    try:
        native = _native_lock(path)
        native.acquire(timeout=_PATIENCE, poll_interval=0.02)
        return native, path.stat().st_ino
    except Timeout:
        raise _refusal(folder, shown, kind) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    lease = _lease(path)
    try:
        holder = read_holder(folder)
        # a claim of another machine is free once it was watched for as long as its holder may be silent
        lease.acquire(timeout=_PATIENCE if holder is None or holder.is_here else _LEASE + 5, poll_interval=0.02)
    except Timeout:
        raise _refusal(folder, shown, kind) from None
    return lease, None


def _native_lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(path, thread_local=False, fallback_to_soft=False)


def _lease(path: Path) -> BaseFileLock:
    from filelock import SoftFileLease

    return SoftFileLease(path, lease_duration=_LEASE, thread_local=False, on_compromise=_lost)


def _lost(compromise: Any) -> None:
    """End what the process does: another one took its claim over, since the file system kept it silent for too long."""
    import _thread

    warnings.warn(f"the lock of {compromise.lock_file} was lost: another process took it over", stacklevel=2)
    _thread.interrupt_main()


def _refusal(folder: Path, shown: Path, kind: OutputKind) -> LockedError:
    holder = read_holder(folder)
    for _ in range(20):  # its name is written right behind the lock; that of a killed one may still be there
        if holder is not None and holder.is_alive:
            break
        time.sleep(0.02)
        holder = read_holder(folder)
    what = f"{shown} is being written by another process"
    if holder is None or not holder.is_alive:
        return LockedError(what, f"it holds the lock of this {kind.noun.split()[-1]}", "wait until it has ended")
    why = f"process {holder.pid} on {holder.host} has been writing since {holder.started} ({holder.command})"
    where = "" if holder.is_here else f" on {holder.host}"
    return LockedError(what, why, f"wait until it has ended, or end it{where} with kill {holder.pid}")


def _give_back(key: tuple[int, Path]) -> None:
    if key[0] != os.getpid():
        return  # a forked child that leaves the block of its parent, whose lock it is
    with _guard:
        held = _held.get(key)
        if held is None:
            return
        held.count -= 1
        if held.count:
            return
        del _held[key]
        folder = key[1]
        with contextlib.suppress(OSError):
            if held.inode is not None and (folder / LOCK).stat().st_ino == held.inode:
                # removed while it is held: whoever opened it by now finds that it has no name any more, and opens a new one
                (folder / HOLDER).unlink(missing_ok=True)
                (folder / LOCK).unlink()
            elif held.inode is None:
                (folder / HOLDER).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            held.lock.release()
        for made in reversed(held.made):
            try:
                made.rmdir()
            except OSError:
                break  # something was written to it


def locked(
    root_of: Callable[..., Path | None], kind: OutputKind = RUN_FOLDER
) -> Callable[[Callable[P, Returned]], Callable[P, Returned]]:
    """Make a function hold the lock of a folder while it runs.

    Parameters
    ----------
    root_of : callable
        Gets the function's arguments and returns the folder that it writes to; None where it only reads.
    kind : OutputKind
        What the folder is, for messages.

    Returns
    -------
    callable
        Decorator. The function raises what `writing` raises, too.
    """

    def decorate(function: Callable[P, Returned]) -> Callable[P, Returned]:
        @wraps(function)
        def run(*words: P.args, **options: P.kwargs) -> Returned:
            root = root_of(*words, **options)
            if root is None:
                return function(*words, **options)
            with writing(root, kind):
                return function(*words, **options)

        return run

    return decorate


def run_of_results(directory: str | Path) -> Path:
    """Return the folder whose lock protects a folder of results: the run around ``results`` and ``results/asked``, else itself.

    Parameters
    ----------
    directory : str or Path

    Returns
    -------
    Path
    """
    path = Path(directory)
    whole = path.absolute()  # of ".", which has no name
    results = whole.parent if whole.name == "asked" else whole
    return results.parent if results.name == "results" else path
