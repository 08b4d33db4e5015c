"""Weights wherever they are: on one device or several, offloaded to memory or disk, split over processes, quantised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError


class OwnedTensor(NamedTuple):
    """A parameter or buffer and the module that owns it.

    Attributes
    ----------
    module : nn.Module
    name : str
        Within the module.
    tensor : Tensor
        As the module has it: on ``meta`` where the weights are offloaded.
    """

    module: nn.Module
    name: str
    tensor: Tensor


def own_tensors(module: nn.Module, *, deep: bool = True) -> Iterator[tuple[str, OwnedTensor]]:
    """List parameters and buffers of a module by their names.

    Parameters
    ----------
    module : nn.Module
    deep : bool
        Also those of the modules inside it.

    Yields
    ------
    tuple of str and OwnedTensor
        Name relative to `module`.
    """
    for path, owner in module.named_modules() if deep else (("", module),):
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            yield (f"{path}.{name}" if path else name), OwnedTensor(owner, name, tensor)


def whole(owned: OwnedTensor) -> Tensor:
    """Fetch the values of a tensor that may be offloaded, or split over processes.

    For a tensor that is split, every process has to call this in the same order.

    Parameters
    ----------
    owned : OwnedTensor

    Returns
    -------
    Tensor
        Its values, on the device where they are kept.

    Raises
    ------
    MoeProbeError
        If they are nowhere: the weights were never loaded.
    """
    if is_split(owned.tensor):
        split: Any = owned.tensor
        gathered: Tensor = split.full_tensor()
        return gathered
    if not owned.tensor.is_meta:
        return owned.tensor
    for hook in hooks_of(owned.module):
        try:  # asking first whether it is there would read it twice: from disk
            fetched: Tensor = (getattr(hook, "weights_map", None) or {})[owned.name]
        except KeyError:
            continue
        return fetched
    raise MoeProbeError(
        f"the weights {owned.name} of {type(owned.module).__name__} are not in memory",
        "they were neither loaded nor offloaded, so the model cannot be identified",
        "load the model with load_model",
    )


def hooks_of(module: nn.Module) -> list[Any]:
    """List the hooks by which the package accelerate moves the weights and inputs of a module; none where it does not."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def is_split(tensor: Tensor) -> bool:
    """Whether each process has a part of a tensor only (tensor or expert parallelism)."""
    return hasattr(tensor, "full_tensor")


def dense_parts(owned: OwnedTensor) -> Iterator[tuple[str, Tensor]]:
    """List everything that decides the values of a weight: itself, or codes and scales of a quantised one.

    Libraries keep scales as parameters or buffers of the module, which need nothing here; bitsandbytes keeps them as
    attributes of the weight, and torchao and quanto in tensors that consist of others.

    Parameters
    ----------
    owned : OwnedTensor

    Yields
    ------
    tuple of str and Tensor
        Suffix of the name ("" for the weight itself), and a plain tensor.
    """
    tensor: Any = whole(owned)
    if hasattr(tensor, "__tensor_flatten__"):
        for name in sorted(tensor.__tensor_flatten__()[0]):
            yield from ((f".{name}{rest}", part) for rest, part in dense_parts(owned._replace(tensor=getattr(tensor, name))))
        return
    yield "", tensor
    state = getattr(tensor, "quant_state", None)  # bitsandbytes, 4 bits
    if state is not None:
        yield from ((f".{name}", part) for name, part in sorted(state.as_dict(packed=True).items()))
    if type(tensor).__name__ == "Int8Params":  # bitsandbytes, 8 bits: its first forward moves the scales to the module
        scales = tensor.SCB if getattr(tensor, "SCB", None) is not None else getattr(owned.module.state, "SCB", None)
        if isinstance(scales, Tensor):
            yield ".SCB", scales
