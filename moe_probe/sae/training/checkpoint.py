"""State of a training on disk: an interruption loses the time since the last checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_errors, sha256_json, write_whole
from moe_probe.sae.training.steps import Progress, Training

_TENSORS = "state.safetensors"


def save_checkpoint(
    folder: Path,
    trainings: Sequence[Training],
    pending: Sequence[Sequence[Tensor]],
    *,
    done: int,
    state: Mapping[str, object],
) -> None:
    """Write parameters, moments and counters of all SAEs that are trained together.

    The count of batches is in the header of the same file, so that both are of one moment.

    Parameters
    ----------
    folder : Path
    trainings : sequence of Training
    pending : sequence of sequence of Tensor
        For each training, activations that are waiting for their batch, shape (n, d_in) each.
    done : int
        Batches read so far.
    state : mapping
        What must be the same for a training to be resumed; JSON values.

    Raises
    ------
    MoeProbeError
        When the disk refuses; the checkpoint before stays.
    """
    tensors: dict[str, Tensor] = {}
    for number, (training, waiting) in enumerate(zip(trainings, pending, strict=True)):
        for name, value in training.sae.state_dict().items():
            tensors[f"{number}.sae.{name}"] = value
        for index, parameter in enumerate(training.sae.parameters()):
            for name, value in training.optimizer.state[parameter].items():
                tensors[f"{number}.adam.{index}.{name}"] = value
        tensors[f"{number}.idle"] = training.idle
        if waiting:
            tensors[f"{number}.pending"] = torch.cat(list(waiting))
    header = {
        "done": str(done),
        "progress": json.dumps([_counters(t.progress) for t in trainings]),
        "identity": _identity(trainings, state),
    }
    with disk_errors(folder, keeps="the last checkpoint is kept"):
        write_whole(
            folder / _TENSORS,
            lambda p: save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, p, metadata=header),
        )


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
        As `save_checkpoint`.

    Returns
    -------
    int
        Batches read by then; 0 where there is no checkpoint.

    Raises
    ------
    MoeProbeError
        When the checkpoint belongs to another training or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / _TENSORS
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MoeProbeError(
            f"the checkpoint {path} cannot be read", str(error), "pass --force to train from the start"
        ) from error
    if header.get("identity") != _identity(trainings, state):
        raise MoeProbeError(
            f"the checkpoint in {folder} belongs to another training",
            "its trace, SAEs or options are different",
            "pass the same options, or --force to start over",
        )
    for number, (training, counters) in enumerate(zip(trainings, json.loads(header["progress"]), strict=True)):
        device = training.sae.W_dec.device
        own = {k.split(".", 1)[1]: v.to(device) for k, v in tensors.items() if k.startswith(f"{number}.")}
        training.sae.load_state_dict(_below("sae.", own))
        for index, parameter in enumerate(training.sae.parameters()):
            training.optimizer.state[parameter] = _below(f"adam.{index}.", own)
        training.idle.copy_(own["idle"])
        vars(training.progress).update(counters)
        if "pending" in own:
            pending[number].append(own["pending"].cpu())
    return int(header["done"])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training that has ended."""
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _counters(progress: Progress) -> dict[str, Any]:
    return {name: value for name, value in vars(progress).items() if name != "config"}


def _identity(trainings: Sequence[Training], state: Mapping[str, object]) -> str:
    described = [state, [t.sae.config.model_dump(mode="json") for t in trainings], [t.steps for t in trainings]]
    return sha256_json(described)
