"""A model split over processes: the first one drives, the others compute their part of whatever it runs.

Every process of torchrun has a slice of each layer, or some of the experts, so that a forward pass needs all of them. The
first process does all that a command does, and announces what it is about to run on a channel of its own; the others run
the same and discard what comes out. Router and experts are called with the ids of the whole model in every process: what
the first one records is complete.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import MoeSite, Observation
from moe_probe.models.discover import input_device, unwrap
from moe_probe.models.identity import fingerprint
from moe_probe.models.weights import is_split

#: Longest that the others wait for the first process, which may read a corpus or write for hours.
_PATIENCE = timedelta(days=7)


class Channel:
    """What the first process tells the others: numbered messages in a store, for which it never has to wait.

    Parameters
    ----------
    store : torch.distributed.Store
    readers : int
        Number of other processes.
    """

    def __init__(self, store: Any, readers: int) -> None:
        self._store, self._readers, self._n = store, readers, 0

    @classmethod
    def open(cls) -> Channel:
        """Open the channel in every process: the first one keeps the messages.

        Returns
        -------
        Channel
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined] # not in every build of torch

        rank, size = dist.get_rank(), dist.get_world_size()
        host, store = os.environ.get("MASTER_ADDR", "localhost"), None
        if rank == 0:
            store = TCPStore(host, 0, is_master=True, timeout=_PATIENCE, wait_for_workers=False)
        address = [store.port if store is not None else None]
        dist.broadcast_object_list(address, src=0)
        if store is None:
            store = TCPStore(host, int(address[0] or 0), is_master=False, timeout=_PATIENCE)
        return cls(store, size - 1)

    def send(self, what: str, given: Any = None) -> None:
        """Send a message to every other process.

        Parameters
        ----------
        what : str
        given : object
            Tensors, numbers and texts, in tuples and dictionaries.
        """
        self._store.set(f"message/{self._n}", pickle.dumps((what, _moved(given, torch.device("cpu")))))
        self._n += 1

    def receive(self) -> tuple[str, Any]:
        """Wait for the next message.

        Returns
        -------
        tuple of str and object
            ``end`` when the first process is gone.
        """
        key, read = f"message/{self._n}", f"read/{self._n}"
        try:
            what, given = pickle.loads(self._store.get(key))
            if self._store.add(read, 1) == self._readers:
                self._store.delete_key(key)
                self._store.delete_key(read)
        except RuntimeError:  # the store went with the process that kept it
            return "end", None
        self._n += 1
        return what, given


class Leader:
    """The first process: announces every pass to the others.

    Parameters
    ----------
    model : nn.Module
    sites : sequence of MoeSite
    channel : Channel
    """

    def __init__(self, model: nn.Module, sites: Sequence[MoeSite], channel: Channel) -> None:
        self._model, self._sites, self._channel = model, tuple(sites), channel
        model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        atexit.register(channel.send, "end")

    def _before_forward(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._channel.send("forward", (args, kwargs))

    def contributions(self, site: MoeSite, seen: Observation) -> Tensor:
        """Compute `Adapter.contributions` in all processes, between two forward passes.

        Parameters
        ----------
        site : MoeSite
        seen : Observation

        Returns
        -------
        Tensor, shape (T, k, d)
        """
        self._channel.send("contributions", (self._sites.index(site), *seen[:3]))
        return ADAPTERS[site.adapter].contributions(site, seen, everywhere=True)

    def fingerprint(self, scheme: str) -> str:
        """Compute `fingerprint`, for which every process has a part of the weights.

        Parameters
        ----------
        scheme : str

        Returns
        -------
        str
        """
        self._channel.send("fingerprint", scheme)
        return fingerprint(self._model, self._sites, scheme=scheme)


_LEADERS: WeakKeyDictionary[nn.Module, Leader] = WeakKeyDictionary()


def leader_of(model: nn.Module) -> Leader | None:
    """Return what announces the passes of a model that is split over processes; None for any other model."""
    return _LEADERS.get(unwrap(model))


def lead_or_follow(model: nn.Module, sites: Sequence[MoeSite]) -> None:
    """Begin to announce passes in the first process; in the others, serve them, and end the process when it is done.

    Parameters
    ----------
    model : nn.Module
        Split over processes.
    sites : sequence of MoeSite

    Raises
    ------
    SystemExit
        In the other processes, with status 0, when the first one has ended.
    """
    channel = Channel.open()
    if dist.get_rank() == 0:
        _LEADERS[model] = Leader(model, sites, channel)
    else:
        _follow(model, sites, channel)


def _follow(model: nn.Module, sites: Sequence[MoeSite], channel: Channel) -> NoReturn:
    device = input_device(model)
    while True:
        what, given = channel.receive()
        given = _moved(given, device)
        with torch.inference_mode():
            if what == "forward":
                args, kwargs = given
                model(*args, **kwargs)
            elif what == "contributions":
                index, *seen = given
                site = sites[index]
                ADAPTERS[site.adapter].contributions(site, Observation(*seen), everywhere=True)
            elif what == "fingerprint":
                fingerprint(model, sites, scheme=given)
            else:
                sys.exit(0)


def refuse_split(model_or_block: nn.Module, what: str) -> None:
    """Refuse what would have to be done in every process alike.

    Parameters
    ----------
    model_or_block : nn.Module
    what : str
        Subject of the sentence, in the plural.

    Raises
    ------
    MoeProbeError
        When some of the weights are split over processes.
    """
    if any(is_split(p) for p in model_or_block.parameters()):
        raise MoeProbeError(
            f"{what} are impossible while the model is split over processes",
            "the other processes would run the model unchanged, and their parts would not fit",
            "load it with --device-map auto instead of --tp-plan",
        )


def _moved(given: Any, device: torch.device) -> Any:
    """Move tensors inside tuples and dictionaries; refuse what cannot be sent, such as caches."""
    if isinstance(given, Tensor):
        return given.detach().to(device)
    if isinstance(given, dict):
        return {name: _moved(value, device) for name, value in given.items()}
    if isinstance(given, tuple | list):
        return tuple(_moved(value, device) for value in given)
    if given is None or isinstance(given, bool | int | float | str):
        return given
    raise MoeProbeError(
        f"a model that is split over processes cannot be run with a {type(given).__name__}",
        "only tensors and numbers reach the other processes",
        "run it without a cache (use_cache=False)",
    )
