"""State of a training on disk: an interruption loses the time since the last checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_errors, sha256_json, write_whole
from moe_probe.core.own_files import CHECKPOINT_FILES
from moe_probe.core.untrusted import open_tensors
from moe_probe.sae.training.steps import Progress, Training

_TENSORS = "state.safetensors"
_START_OVER = "pass --force to train from the start"


class CheckpointWriter:
    """Writes the state of SAEs that are trained together while they go on; a context manager, which ends the writing.

    The state is copied at once and written by a thread: a step waits for the copy, not for the disk. The copy is in memory
    until it is written (16 bytes per parameter of an SAE).

    Parameters
    ----------
    folder : Path
    trainings : sequence of Training
    pending : sequence of sequence of Tensor
        For each training, activations that are waiting for their batch, shape (n, d_in) each.
    state : mapping
        What must be the same for a training to be resumed; JSON values.
    """

    def __init__(
        self,
        folder: Path,
        trainings: Sequence[Training],
        pending: Sequence[Sequence[Tensor]],
        *,
        state: Mapping[str, object],
    ) -> None:
        self._folder, self._trainings, self._pending, self._state = folder, trainings, pending, state
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        """Begin without a checkpoint."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the disk; what it refused is raised, or noted on the error that ended the training."""
        self._thread.shutdown()
        refused = self._writing.exception() if self._writing is not None else None
        if error is None and refused is not None:
            raise refused
        if error is not None and refused is not None and refused is not error:
            error.add_note(str(refused))

    def save(self, done: int) -> bool:
        """Copy the state and begin to write it, after `done` batches.

        Parameters
        ----------
        done : int

        Returns
        -------
        bool
            False when the one before is still being written: nothing is done then.

        Raises
        ------
        MoeProbeError
            When the disk refused the one before; the last checkpoint that was written stays.
        """
        if self._writing is not None:
            if not self._writing.done():
                return False
            self._writing.result()
        # the count of batches is in the header of the same file, so that both are of one moment
        header = {
            "done": str(done),
            "progress": json.dumps([_counters(t.progress) for t in self._trainings]),
            "identity": _identity(self._trainings, self._state),
        }
        self._writing = self._thread.submit(_write, self._folder, _copies(self._trainings, self._pending), header)
        return True


def _copies(trainings: Sequence[Training], pending: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Copy parameters, moments and counters of all SAEs to memory of the host."""
    tensors: dict[str, Tensor] = {}
    for number, (training, waiting) in enumerate(zip(trainings, pending, strict=True)):
        for name, value in training.sae.state_dict().items():
            tensors[f"{number}.sae.{name}"] = value
        for index, parameter in enumerate(training.sae.parameters()):
            for name, value in training.optimizer.state[parameter].items():
                tensors[f"{number}.adam.{index}.{name}"] = value
        tensors[f"{number}.idle"] = training.idle.tokens
        if waiting:
            tensors[f"{number}.pending"] = torch.cat(list(waiting))
    host = torch.device("cpu")
    return {k: v.detach().to(host, copy=True, memory_format=torch.contiguous_format) for k, v in tensors.items()}


def _write(folder: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    with disk_errors(folder, keeps="the last checkpoint is kept"):
        write_whole(folder / _TENSORS, lambda path: save_file(tensors, path, metadata=header))


def load_checkpoint(
    folder: Path, trainings: Sequence[Training], pending: Sequence[list[Tensor]], *, state: Mapping[str, object]
) -> int:
    """Bring trainings to the state of a checkpoint.

    Parameters
    ----------
    folder : Path
    trainings : sequence of Training
        As they begin; changed in place.
    pending : sequence of list of Tensor
        Empty; filled with the activations that were waiting for their batch.
    state : mapping
        As `CheckpointWriter`.

    Returns
    -------
    int
        Batches read by then; 0 where there is no checkpoint.

    Raises
    ------
    MoeProbeError
        When the checkpoint belongs to another training or cannot be read.
    """
    path = folder / _TENSORS
    if not os.path.lexists(path):
        return 0
    with open_tensors(path, framework="pt", hint=_START_OVER) as file:
        header = file.metadata
        tensors = {name: file.tensor(name) for name in sorted(file.names)}
    if header.get("identity") != _identity(trainings, state):
        raise MoeProbeError(
            f"the checkpoint in {folder} belongs to another training",
            "its trace, SAEs or options are different",
            "pass the same options, or --force to start over",
        )
    done, progress = _counts(path, header, trainings)
    owned = []
    for number, training in enumerate(trainings):
        own = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{number}.")}
        _check_state(path, training, own)
        owned.append(own)
    for number, (training, own) in enumerate(zip(trainings, owned, strict=True)):  # nothing is changed unless all fits
        own = {k: v.to(training.sae.W_dec.device) for k, v in own.items()}
        training.sae.load_state_dict(_below("sae.", own))
        for index, parameter in enumerate(training.sae.parameters()):
            training.optimizer.state[parameter] = _below(f"adam.{index}.", own)
        training.idle.tokens.copy_(own["idle"])
        vars(training.progress).update(progress[number])
        if "pending" in own:
            pending[number].append(own["pending"].cpu())
    return done


def _counts(path: Path, header: Mapping[str, str], trainings: Sequence[Training]) -> tuple[int, list[dict[str, Any]]]:
    """Read the number of batches and the counters of every SAE from the header."""
    try:
        done, progress = int(header["done"]), json.loads(header["progress"])
        if done < 0 or len(progress) != len(trainings):
            raise ValueError("other counts of batches or SAEs")
        for training, counters in zip(trainings, progress, strict=True):
            kinds = {name: type(value) for name, value in _counters(training.progress).items()}
            if {name: type(value) for name, value in counters.items()} != kinds:
                raise ValueError(f"other counters: {', '.join(map(str, counters))[:100]}")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header: {error}") from error
    return done, progress


def _check_state(path: Path, training: Training, own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of an SAE's training, in name, type or shape."""
    due = {f"sae.{name}": value for name, value in training.sae.state_dict().items()} | {"idle": training.idle.tokens}
    for index, parameter in enumerate(training.sae.parameters()):
        moments = {"exp_avg": parameter, "exp_avg_sq": parameter, "step": torch.zeros(())}
        if any(name.startswith(f"adam.{index}.") for name in own):  # none before the first step
            due |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    names = set(own) - {"pending"}
    if names != set(due):
        raise _damaged(path, f"it lacks or adds tensors: {', '.join(sorted(names ^ set(due)))[:100]}")
    for name, value in due.items():
        if own[name].shape != value.shape or own[name].dtype != value.dtype:
            raise _damaged(path, f"{name} has the shape {tuple(own[name].shape)} and the type {own[name].dtype}")
    waiting = own.get("pending")
    width = training.sae.config.d_in
    if waiting is not None and (waiting.ndim < 2 or waiting.shape[-1] != width or not waiting.is_floating_point()):
        raise _damaged(path, f"the activations that wait have the shape {tuple(waiting.shape)}")


def _damaged(path: Path, why: str) -> MoeProbeError:
    return MoeProbeError(f"the checkpoint {path} cannot be read", why, _START_OVER)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training that has ended."""
    with disk_errors(folder):
        CHECKPOINT_FILES.remove_folder(folder)


def _counters(progress: Progress) -> dict[str, Any]:
    return {name: value for name, value in vars(progress).items() if name != "config"}


def _identity(trainings: Sequence[Training], state: Mapping[str, object]) -> str:
    described = [state, [t.sae.config.model_dump(mode="json") for t in trainings], [t.steps for t in trainings]]
    return sha256_json(described)
