"""What readers of other libraries' SAE folders share: checks of fields and tensors, and the form they are brought into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import clipped, printable

#: Values that say "off" in every one of the libraries.
_OFF: tuple[object, ...] = (None, False, "", "none", "None", [], {})


@dataclass(frozen=True)
class Refusal:
    """Why a field is refused, and the values at which it does nothing."""

    why: str
    hint: str
    harmless: tuple[object, ...] = ()


@dataclass(frozen=True)
class Fields:
    """Fields of a library's configuration.

    Attributes
    ----------
    read : frozenset of str
        They change what the SAE computes, and the reader takes them into account.
    unused : frozenset of str
        They are about training, data or logging: any value leaves the saved weights' function as it is.
    refused : mapping of str to Refusal
        They change the function in a way that is not reproduced here.
    """

    read: frozenset[str]
    unused: frozenset[str]
    refused: Mapping[str, Refusal]


@dataclass(frozen=True)
class Parts:
    """An SAE of another library in the form of `moe_probe.sae`: ``f = act(W_enc (x - b_dec) + b_enc)``, ``x ≈ W_dec' f + b_dec``.

    Attributes
    ----------
    architecture : {"topk", "standard", "jumprelu"}
    W_enc, W_dec : Tensor, shape (d_sae, d_in)
    b_enc, b_dec : Tensor, shapes (d_sae,) and (d_in,)
    threshold : Tensor of shape (d_sae,), optional
        Of jumprelu.
    k : int, optional
        None where the configuration has none and the architecture needs none.
    notes : tuple of str
        What a person should be told.
    """

    architecture: str
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    k: int | None = None
    notes: tuple[str, ...] = ()

    def with_notes(self, notes: Iterable[str]) -> Parts:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def input_without_bias(self) -> Parts:
        """Rewrite an encoder that reads x itself as one that reads x - b_dec: ``W x + b = W (x - b_dec) + (b + W b_dec)``."""
        return replace(self, b_enc=self.b_enc + self.W_enc @ self.b_dec)

    def with_unit_decoder(self) -> Parts:
        """Move the norms of decoder rows into the encoder: codes are then multiplied by them, and reconstructions stay.

        The threshold is kept: in the libraries that do this it is compared with codes that are multiplied already.
        """
        norms = self.W_dec.norm(dim=1).clamp_min(1e-8)
        return replace(self, W_enc=self.W_enc * norms[:, None], b_enc=self.b_enc * norms, W_dec=self.W_dec / norms[:, None])


@dataclass
class Source:
    """A folder that is being read.

    Attributes
    ----------
    path : Path
        Its configuration.
    config : dict
    allowed : tuple of str
        Unknown fields that the person has declared to be harmless.
    notes : list of str
    """

    path: Path
    config: dict[str, Any]
    allowed: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def check_fields(self, fields: Fields, config: Mapping[str, Any] | None = None) -> None:
        """Refuse every field that changes the function and is not read, and every unknown one that is switched on.

        An unknown field may be a new option of the library: ignoring it could give other codes without a word. The person can
        state that it is harmless (``--ignore-field``); this is not offered for fields that are known to matter.

        Raises
        ------
        MoeProbeError
            Naming the field and its value.
        """
        off = []
        for name, value in (self.config if config is None else config).items():
            if name in fields.read or name in fields.unused:
                continue
            if name in fields.refused:
                refusal = fields.refused[name]
                if not _among(value, (*_OFF, *refusal.harmless)):
                    raise self.refuse(name, value, refusal.why, refusal.hint)
            elif _among(value, _OFF):
                off.append(printable(name))
            elif name not in self.allowed:
                raise self.refuse(
                    name,
                    value,
                    "this field is unknown and may change what the SAE computes",
                    f"--ignore-field {printable(name)}, if you know that it does not",
                )
        if off:
            self.notes.append(f"{self.path.name} has fields that are unknown here and switched off: {', '.join(off[:8])}")

    def refuse(self, name: str, value: object, why: str, hint: str) -> MoeProbeError:
        """The error about one field."""
        return MoeProbeError(f"{self.path} has {printable(name)} {shown(value)}", why, hint)

    def active_latents(self, name: str, value: object, d_sae: int) -> int:
        """Read a k.

        Raises
        ------
        MoeProbeError
            When it is missing, no whole number, below 1 or above the number of latents.
        """
        if value is None:
            raise MoeProbeError(
                f"{self.path} has no {name}",
                "the number of active latents per token cannot be derived from the weights",
                f'add "{name}" as it was in training to a copy of the folder',
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not 1 <= value <= d_sae:
            raise self.refuse(
                name,
                value,
                f"it must be a whole number from 1 to {d_sae}, the number of latents",
                "the folder as its program wrote it",
            )
        return int(value)


class Tensors:
    """Tensors of a file, each of which must be asked for."""

    def __init__(self, path: Path, held: Mapping[str, Tensor]) -> None:
        self.path, self._held, self._left = path, held, set(held)

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def take(self, *names: str) -> list[Tensor]:
        """Tensors by name, in float32.

        Raises
        ------
        MoeProbeError
            When one is missing or holds NaN or infinity.
        """
        missing = [name for name in names if name not in self._held]
        if missing:
            raise MoeProbeError(
                f"{self.path} has no {', '.join(missing)}",
                f"it has {_names(self._held)}",
                "the folder as its program wrote it",
            )
        self._left -= set(names)
        for name in names:
            if not bool(self._held[name].isfinite().all()):
                raise MoeProbeError(
                    f"{name} of {self.path} has values that are not finite",
                    "codes would be NaN",
                    "download the file again, or another SAE",
                )
        return [self._held[name] for name in names]

    def drop(self, *names: str) -> None:
        """Leave tensors out that the function does not use."""
        self._left -= set(names)

    def shaped(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check shapes.

        Raises
        ------
        MoeProbeError
            Naming the tensor, its shape and the expected one.
        """
        for name, shape in shapes.items():
            if tuple(self._held[name].shape) != shape:
                raise MoeProbeError(
                    f"{name} of {self.path} has the shape {tuple(self._held[name].shape)}",
                    f"expected {shape}",
                    "files of one SAE",
                )

    def finish(self) -> None:
        """Refuse what was never asked for: a tensor that the function needs could be among it.

        Raises
        ------
        MoeProbeError
            Naming the tensors.
        """
        if self._left:
            raise MoeProbeError(
                f"{self.path} has tensors that this kind of SAE does not use: {_names(self._left)}",
                "the SAE may compute something else than its configuration says",
                "the folder as its program wrote it",
            )


def shown(value: object) -> str:
    """A value of a configuration in a message: short, and without control characters."""
    return clipped(json.dumps(value, ensure_ascii=True, default=str), 60)


def matrix_shape(tensor: Tensor, name: str, path: Path) -> tuple[int, int]:
    """Rows and columns of a matrix.

    Raises
    ------
    MoeProbeError
        When it is none.
    """
    if tensor.dim() != 2:
        raise MoeProbeError(
            f"{name} of {path} has the shape {tuple(tensor.shape)}", "a matrix is expected", "files of one SAE"
        )
    return tensor.shape[0], tensor.shape[1]


def gated_as_jumprelu(encoder: Tensor, biases: tuple[Tensor, Tensor], r_mag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewrite a gated encoder with shared weights as a JumpReLU encoder; it computes the same.

    With ``p = exp(r_mag) W x + b_mag`` the gate ``W x + b_gate > 0`` is ``p > b_mag - exp(r_mag) b_gate``
    (Rajamanoharan et al. 2024, arXiv:2404.16014, appendix on the equivalence of the weight-tied gated encoder to JumpReLU).

    Parameters
    ----------
    encoder : Tensor, shape (d_sae, d_in)
    biases : tuple of Tensor, shape (d_sae,)
        ``b_gate`` and ``b_mag``.
    r_mag : Tensor, shape (d_sae,)

    Returns
    -------
    tuple of Tensor
        Encoder, bias and threshold.
    """
    gate, magnitude = biases
    growth = r_mag.exp()
    return encoder * growth[:, None], magnitude, magnitude - growth * gate


def _among(value: object, values: Iterable[object]) -> bool:
    """Equality that takes 0 and False, 1 and True for different values."""
    return any(type(value) is type(other) and value == other for other in values)


def _names(names: Iterable[str]) -> str:
    known = sorted(printable(n) for n in names)
    return ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
