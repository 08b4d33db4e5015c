"""State of a training on disk: what an interruption costs is the time since the last one."""

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

    The file of numbers carries the count of batches in its own header, so that the two files cannot
    disagree, whatever moment the process is killed at.

    Raises
    ------
    MoeProbeError
        When the disk refuses; the checkpoint before stays.
    """
    tensors: dict[str, Tensor] = {}
    for number, (training, waiting) in enumerate(zip(trainings, pending, strict=True)):
        for name, value in training.sae.state_dict().items():
            tensors[f"{number}.sae.{name}"] = value
        for place, parameter in enumerate(training.sae.parameters()):
            for name, value in training.optimizer.state[parameter].items():
                tensors[f"{number}.adam.{place}.{name}"] = value
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
    """Bring trainings to the state of a checkpoint; return the number of batches done (0: there is none).

    Raises
    ------
    MoeProbeError
        When it belongs to another training or cannot be read.
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
            f"the checkpoint {path} cannot be read", str(error), "--force to train from the start"
        ) from error
    if header.get("identity") != _identity(trainings, state):
        raise MoeProbeError(
            f"the checkpoint in {folder} is of another training",
            "its trace, SAEs or options were others",
            "the same options, or --force to start over",
        )
    for number, (training, counters) in enumerate(zip(trainings, json.loads(header["progress"]), strict=True)):
        device = training.sae.W_dec.device
        mine = {k.split(".", 1)[1]: v.to(device) for k, v in tensors.items() if k.startswith(f"{number}.")}
        training.sae.load_state_dict({k.removeprefix("sae."): v for k, v in mine.items() if k.startswith("sae.")})
        for place, parameter in enumerate(training.sae.parameters()):
            start = f"adam.{place}."
            training.optimizer.state[parameter] = {k.removeprefix(start): v for k, v in mine.items() if k.startswith(start)}
        training.idle.copy_(mine["idle"])
        vars(training.progress).update(counters)
        if "pending" in mine:
            pending[number].append(mine["pending"].cpu())
    return int(header["done"])


def remove_checkpoint(folder: Path) -> None:
    """Remove what is no longer needed."""
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _counters(progress: Progress) -> dict[str, Any]:
    return {name: value for name, value in vars(progress).items() if name != "config"}


def _identity(trainings: Sequence[Training], state: Mapping[str, object]) -> str:
    described = [state, [t.sae.config.model_dump(mode="json") for t in trainings], [t.steps for t in trainings]]
    return sha256_json(described)
