"""Ray started on this machine, or a cluster connected to: quiet, and without its usage statistics."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.extras import need_extra
from moe_probe.core.text import clipped
from moe_probe.core.workers.plan import Node, describe
from moe_probe.core.workers.settings import WorkerSettings

#: Bytes of the object store of a Ray that is started here: parts are written to files, and messages are small.
_OBJECT_STORE = 100 * 2**20
#: Seconds in which a cluster has to answer.
_PATIENCE = 10.0
#: Where its files go while it runs: paths of sockets have 107 bytes at most, and ``TMPDIR`` may be long.
_SHORT = Path("/tmp")
#: What Ray reads when it is started: it sends nothing home, and starts no processes before they are asked for.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A Ray that is connected to.

    Attributes
    ----------
    ray : module
    title : str
        What it is, for people.
    """

    ray: Any
    title: str

    def nodes(self) -> list[Node]:
        """List what the nodes that are alive offer, whether in use or not."""
        resources = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [Node(float(r.get("CPU", 0)), float(r.get("GPU", 0))) for r in resources]


@contextlib.contextmanager
def connected(settings: WorkerSettings) -> Iterator[Cluster]:
    """Start Ray or connect to a cluster, and leave it at the end; one that was started here is stopped.

    A connection that is there already (in a notebook) is used and left as it is.

    Parameters
    ----------
    settings : WorkerSettings

    Yields
    ------
    Cluster

    Raises
    ------
    MoeProbeError
        When the package ray is missing, or there is no cluster at the address, or one of another version.
    """
    need_extra("ray", "Ray workers", instead="omit --ray")
    address = settings.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        os.environ.update(_ENVIRONMENT)
        _ask_for_a_token()
    elif address != "auto":
        _check_reachable(address)
    import ray

    if ray.is_initialized():
        yield _described(ray, "the Ray of this process")
        return
    with contextlib.ExitStack() as stack:
        if address == "local":
            folder = tempfile.mkdtemp(prefix="moe-probe-ray-", dir=_SHORT if _SHORT.is_dir() else None)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options: dict[str, Any] = {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
                "_temp_dir": folder,  # by default all users of a machine share one
            }
        else:
            options = {"address": address}
        stack.callback(ray.shutdown)
        with _own_sigterm():
            _init(ray, options)
        _silence(ray)
        yield _described(ray, "Ray on this machine" if address == "local" else f"the Ray cluster at {address}")


def _ask_for_a_token() -> None:
    """Let a Ray of our own answer this user alone: its ports are open to the network, and run whatever they are sent.

    Older versions have no tokens. Ray reads its settings when it is imported: after that it is too late.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _described(ray: Any, name: str) -> Cluster:
    return Cluster(ray, f"{name}: {describe(Cluster(ray, name).nodes())}")


def _check_reachable(address: str) -> None:
    """Refuse at once what Ray would try to reach for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--ray-address {address} cannot be read", "", "auto, or HOST:PORT as ray start names it")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE):
            pass
    except (OSError, OverflowError) as error:
        raise _nowhere(address, str(error)) from error


def _nowhere(address: str, why: str) -> MoeProbeError:
    return MoeProbeError(
        f"there is no Ray cluster to connect to at {address}",
        why,
        "ray status there, another --ray-address, or none and no RAY_ADDRESS: then Ray runs on this machine",
    )


def _init(ray: Any, options: dict[str, Any]) -> None:
    try:
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        why = clipped(" ".join(str(error).split()), 300)
        if options["address"] != "local":
            raise _nowhere(options["address"], why) from error
        raise MoeProbeError("Ray could not be started on this machine", why, "omit --ray") from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray replaces it and does not give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _silence(ray: Any) -> None:
    """Keep Ray from printing to stdout, whose content belongs to the command: lost workers are reported by the pool."""
    ray._private.worker._worker_logs_enabled = False  # no public switch covers the notes of the raylet
