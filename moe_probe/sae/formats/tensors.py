"""Tensors of an SAE's file: each is taken once, checked, and none is left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import printable

#: Hints of errors on SAE folders.
AS_WRITTEN, ONE_SAE = "use the folder as its program wrote it", "use files of one SAE"


class Tensors:
    """Tensors of a file, each of which must be taken or dropped."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self._tensors, self._left = path, tensors, set(tensors)

    def __contains__(self, name: str) -> bool:
        """Whether the file has a tensor."""
        return name in self._tensors

    def take(self, *names: str) -> list[Tensor]:
        """Take tensors by name, in float32.

        Raises
        ------
        MoeProbeError
            When one is missing or has NaN or infinite values.
        """
        missing = [name for name in names if name not in self._tensors]
        if missing:
            raise MoeProbeError(f"{self.path} has no {', '.join(missing)}", f"it has {_names(self._tensors)}", AS_WRITTEN)
        self._left -= set(names)
        taken = [self._tensors[name] for name in names]
        for name, tensor in zip(names, taken, strict=True):
            if not bool(tensor.isfinite().all()):
                raise MoeProbeError(
                    f"{name} of {self.path} has values that are not finite",
                    "codes would be NaN",
                    "download the file again, or use another SAE",
                )
        return taken

    def drop(self, *names: str) -> None:
        """Ignore tensors that the SAE does not compute with."""
        self._left -= set(names)

    def shaped(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check shapes.

        Raises
        ------
        MoeProbeError
            Naming the tensor, its shape and the expected one.
        """
        for name, shape in shapes.items():
            actual = tuple(self._tensors[name].shape)
            if actual != shape:
                raise MoeProbeError(f"{name} of {self.path} has the shape {actual}", f"expected {shape}", ONE_SAE)

    def finish(self) -> None:
        """Refuse what was neither taken nor dropped: the SAE could compute with it.

        Raises
        ------
        MoeProbeError
            Naming the tensors.
        """
        if self._left:
            raise MoeProbeError(
                f"{self.path} has tensors that this kind of SAE does not use: {_names(self._left)}",
                "the SAE may compute something else than its configuration states",
                AS_WRITTEN,
            )


def matrix_shape(tensor: Tensor, name: str, path: Path) -> tuple[int, int]:
    """Read the numbers of rows and columns of a matrix.

    Parameters
    ----------
    tensor : Tensor
    name : str
        For the message.
    path : Path
        Its file, for the message.

    Returns
    -------
    tuple of int

    Raises
    ------
    MoeProbeError
        When it is no matrix.
    """
    if tensor.dim() != 2:
        raise MoeProbeError(f"{name} of {path} has the shape {tuple(tensor.shape)}", "a matrix is expected", ONE_SAE)
    if not tensor.numel():
        raise MoeProbeError(f"{name} of {path} has the shape {tuple(tensor.shape)}", "it has no values", ONE_SAE)
    return tensor.shape[0], tensor.shape[1]


def _names(names: Iterable[str]) -> str:
    known = sorted(printable(n) for n in names)
    return ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
