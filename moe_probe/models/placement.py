"""Where the weights of a model go: one device, several, or parts of them to memory and disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.extras import need_extra
from moe_probe.core.textfiles import read_text

#: Maps that the package accelerate makes from the free memory of the devices.
AUTOMATIC_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
#: How layers are split over processes: by the tensor-parallel plan of the model, or by its expert-parallel plan.
TP_PLANS = ("auto", "experts")

DeviceMap = str | Mapping[str, int | str]
MaxMemory = str | Mapping[int | str, int | str]


@dataclass(frozen=True)
class Placed:
    """Where the weights go.

    Attributes
    ----------
    device : str or None
        The one device that all of them go on.
    arguments : mapping
        Of ``from_pretrained``, where there is none.
    """

    device: str | None
    arguments: Mapping[str, Any]

    @property
    def _direct(self) -> bool:
        return self.device is not None and find_spec("accelerate") is not None

    def options(self, *, quantized: bool) -> dict[str, Any]:
        """Make the arguments of ``from_pretrained``: straight to a GPU, and quantised weights where they stay.

        Parameters
        ----------
        quantized : bool
            Whether the weights are, so that they cannot be moved once they are loaded.

        Returns
        -------
        dict
        """
        if self._direct and (quantized or self.device != "cpu"):
            return {"device_map": self.device}
        return dict(self.arguments)

    def moved(self, model: Any) -> Any:
        """Move a model to its one device, unless it was loaded there.

        Parameters
        ----------
        model : PreTrainedModel

        Returns
        -------
        PreTrainedModel
        """
        return model if self.device in (None, "cpu") or self._direct else model.to(self.device)


def placement_options(
    *,
    device: str,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
    offload_folder: str | Path | None,
    tp_plan: str | None,
) -> Placed:
    """Check where the weights are to go.

    Parameters
    ----------
    device, device_map, max_memory, offload_folder, tp_plan
        As `load_model` takes them.

    Returns
    -------
    Placed

    Raises
    ------
    UsageError
        Where options exclude each other or cannot be read.
    MoeProbeError
        Where the device, the package accelerate or further processes are missing.
    """
    if tp_plan is not None:
        _refuse_beside("--tp-plan", {"--device-map": device_map, "--device": None if device == "auto" else device})
        return Placed(None, _tensor_parallel(tp_plan))
    if device_map is None:
        _refuse_without_map({"--max-memory": max_memory, "--offload-folder": offload_folder})
        return Placed(_one_device(device), {})
    if device != "auto":
        raise UsageError(
            "--device and --device-map exclude each other", "one names a single device, the other several", "one of the two"
        )
    need_extra("quantized", "device maps", instead="load the model on one device")
    options: dict[str, Any] = {"device_map": _read_map(device_map)}
    if max_memory is not None:
        options["max_memory"] = _read_memory(max_memory)
    if offload_folder is not None:
        options["offload_folder"] = str(offload_folder)
    return Placed(None, options)


def _one_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"unknown device '{device}'", "devices are cpu, cuda and cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise MoeProbeError(
            f"there is no device {device}", "torch finds no GPU", "device cpu (--device cpu, or in run.yaml)"
        )
    return device


def _refuse_beside(option: str, others: Mapping[str, object]) -> None:
    for other, given in others.items():
        if given is not None:
            raise UsageError(
                f"{option} and {other} exclude each other", f"{option} puts one part on the device of every process", ""
            )


def _refuse_without_map(options: Mapping[str, object]) -> None:
    for option, given in options.items():
        if given is not None:
            raise UsageError(f"{option} needs --device-map", "without it the model goes on one device", "--device-map auto")


def _read_map(given: DeviceMap) -> str | dict[str, int | str]:
    """Read a map of modules to devices: a name, a JSON file, or the map itself."""
    if isinstance(given, str) and given in AUTOMATIC_MAPS:
        return given
    if isinstance(given, str):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(
                f"--device-map {given} is neither a file nor a known map",
                did_you_mean(given, list(AUTOMATIC_MAPS)),
                f"use one of {', '.join(AUTOMATIC_MAPS)}, or a JSON file",
            )
        try:
            given = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise UsageError(f"--device-map {path} is not JSON", str(error), '{"model.layers.0": 0, "": "cpu"}') from error
    wrong = not isinstance(given, Mapping) or not given or any(not isinstance(v, int | str) for v in given.values())
    if wrong:
        raise UsageError(
            "the device map is not a mapping of modules to devices",
            "a device is a number, cpu or disk",
            '{"model.layers.0": 0, "": "cpu"}',
        )
    return {str(module): device for module, device in given.items()}  # type: ignore[union-attr]


def _read_memory(given: MaxMemory) -> dict[int | str, int | str]:
    """Read ``0=40GiB,cpu=100GiB``; a number alone counts bytes."""
    pairs = [tuple(part.split("=", 1)) for part in given.split(",")] if isinstance(given, str) else list(given.items())
    out: dict[int | str, int | str] = {}
    for pair in pairs:
        device, size = (str(x).strip() for x in pair) if len(pair) == 2 else ("", "")
        if not device or not re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]i?B)?", size, re.ASCII | re.IGNORECASE):
            raise UsageError(
                f"--max-memory {given} cannot be read", "it is not a list of devices and sizes", "0=70GiB,cpu=100GiB"
            )
        out[int(device) if device.isdigit() else device] = int(size) if size.isdigit() else size.replace(" ", "")
    return out


def _tensor_parallel(plan: str) -> dict[str, Any]:
    if plan not in TP_PLANS:
        raise UsageError(f"unknown plan '{plan}'", did_you_mean(plan, list(TP_PLANS)), f"use {' or '.join(TP_PLANS)}")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        raise MoeProbeError(
            "--tp-plan needs several processes",
            "this one runs alone",
            "torchrun --nproc-per-node 8 -m moe_probe check MODEL --tp-plan auto",
        )
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        # with whole experts, attention and the output head are still split as the tensor-parallel plan says
        whole = size if plan == "experts" else 1
        return {"distributed_config": DistributedConfig(tp_size=size, tp_plan="auto", ep_size=whole)}
    except (ImportError, TypeError) as error:
        raise MoeProbeError(
            "the installed transformers cannot split a model over processes",
            "its DistributedConfig has no such plan",
            "pip install 'transformers>=5.23'",
        ) from error
