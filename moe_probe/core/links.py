"""Links in a folder that somebody else may have made: none may lead out of it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import MANIFEST

#: The one link that this package makes in a run, where a trace lies elsewhere.
_TRACE = "trace"
#: How the hub's cache names the folder of a repository; it has `blobs` and `snapshots`.
_REPOSITORY = ("models--", "datasets--", "spaces--")


def refuse_links_out(root: str | Path, *, trace: bool = False) -> Path | None:
    """Refuse a folder with a link that leads out of it, and with what is neither file nor folder.

    Who reads through such a link shows files of this machine in a report that is passed on; who writes through it changes
    them; who opens a pipe waits for ever. Links to what lies in the folder stay. Files of the hub's cache are links to `blobs` of
    their repository: these stay too, wherever in a snapshot the folder lies.

    Parameters
    ----------
    root : str or Path
        Folder that a command was called with; whether it is a link itself is the caller's own business.
    trace : bool
        Allow ``trace`` in it to be a link, as `moe-probe analyze TRACE --out RUN` makes it; links inside are refused.

    Returns
    -------
    Path or None
        Where a linked trace lies.

    Raises
    ------
    MoeProbeError
        Naming the first link that leads out.
    """
    top = Path(root)
    home = top.resolve()
    linked = top / _TRACE if trace and (top / _TRACE).is_symlink() and not _inside(top / _TRACE, home) else None
    whole = [home, *_blobs(home)]
    waiting = [str(top)] if top.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = Path(entry.path)
                if entry.is_symlink():
                    if path != linked and not any(_inside(path, one) for one in whole):
                        raise _leads_out(path)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise MoeProbeError(
                        f"{path} is neither a file nor a folder",
                        "reading it could wait for ever",
                        f"rm {shlex.quote(str(path))}",
                    )
    if linked is None:
        return None
    lies = linked.resolve()
    if (lies / MANIFEST).is_file():  # else a command says that there is no trace, and nothing is searched
        refuse_links_out(lies)
    return lies


def refuse_settings_out(path: Path) -> None:
    """Refuse settings that are a link out of a run; settings of one's own, outside a run, may be a link as any file.

    Parameters
    ----------
    path : Path
        File that a command was called with.

    Raises
    ------
    MoeProbeError
        Naming what it points to.
    """
    home = path.parent.resolve()
    of_a_run = any((home / name).exists() for name in (_TRACE, "logs/stages.json"))
    if of_a_run and path.is_symlink() and not any(_inside(path, one) for one in (home, *_blobs(home))):
        raise _leads_out(path)


def _blobs(home: Path) -> list[Path]:
    """Return the folder of the files that a snapshot of the hub's cache links to; nothing for any other folder."""
    around = [snapshots.parent for snapshots in home.parents if snapshots.name == "snapshots"]
    return [one / "blobs" for one in around if one.name.startswith(_REPOSITORY)][:1]


def _inside(link: Path, home: Path) -> bool:
    try:
        return link.resolve(strict=False).is_relative_to(home)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _leads_out(path: Path) -> MoeProbeError:
    return MoeProbeError(
        f"{path} is a link that leads out of its folder",
        f"it points to {path.readlink()}, which no command named",
        f"put the file or folder itself there (cp -rL), or rm {shlex.quote(str(path))}",
    )
