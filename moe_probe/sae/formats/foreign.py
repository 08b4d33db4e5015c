"""What the readers of other libraries' SAE folders share: checks of fields, and the form they convert to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import clipped, printable
from moe_probe.sae.formats.tensors import AS_WRITTEN, ONE_SAE

#: Values that mean "off" in every one of the libraries.
_OFF: tuple[object, ...] = (None, False, "", "none", "None", [], {})


@dataclass(frozen=True)
class Refusal:
    """Why a field is refused, what to try, and the values at which the field does nothing."""

    why: str
    hint: str
    harmless: tuple[object, ...] = ()


@dataclass(frozen=True)
class Fields:
    """Fields of a library's configuration.

    Attributes
    ----------
    read : frozenset of str
        Fields that change what the SAE computes, and that the reader takes into account.
    unused : frozenset of str
        Fields on training, data or logging: no value of theirs changes what the saved weights compute.
    refused : mapping of str to Refusal
        Fields that change what the SAE computes in a way that is not reproduced here.
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
        Sentences that a person should read.
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
        """Add further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def input_without_bias(self) -> Parts:
        """Rewrite an encoder that reads x itself as one that reads x - b_dec: ``W x + b = W (x - b_dec) + (b + W b_dec)``."""
        return replace(self, b_enc=self.b_enc + self.W_enc @ self.b_dec)

    def with_unit_decoder(self) -> Parts:
        """Move the norms of decoder rows into the encoder: codes are multiplied by them, and reconstructions stay the same.

        The threshold is kept: the libraries that do this compare it with codes that are multiplied already.
        """
        norms = self.W_dec.norm(dim=1).clamp_min(1e-8)
        return replace(self, W_enc=self.W_enc * norms[:, None], b_enc=self.b_enc * norms, W_dec=self.W_dec / norms[:, None])


@dataclass
class Source:
    """The configuration of a folder that is being read.

    Attributes
    ----------
    path : Path
        File of the configuration.
    config : dict
    allowed : tuple of str
        Unknown fields that the user has declared harmless.
    notes : list of str
        Sentences that a person should read.
    """

    path: Path
    config: dict[str, Any]
    allowed: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def check_fields(self, fields: Fields, config: Mapping[str, Any] | None = None) -> None:
        """Refuse every field that changes the function and is not read, and every unknown one that is switched on.

        An unknown field may be a new option of the library: ignoring it could silently give other codes. The user can
        declare it harmless (``--ignore-field``); this is not offered for fields that are known to matter.

        Parameters
        ----------
        fields : Fields
            Of this part of the configuration.
        config : mapping, optional
            A part of the configuration; all of it by default.

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
                    f"pass --ignore-field {printable(name)}, if you know that it does not",
                )
        if off:
            self.notes.append(f"{self.path.name} has fields that are unknown here and switched off: {', '.join(off[:8])}")

    def refuse(self, name: str, value: object, why: str, hint: str = AS_WRITTEN) -> MoeProbeError:
        """Make the error on one field.

        Parameters
        ----------
        name : str
            Of the field.
        value : object
            Of the field.
        why : str
        hint : str
            What to try.

        Returns
        -------
        MoeProbeError
        """
        return MoeProbeError(f"{self.path} has {printable(name)} {shown(value)}", why, hint)

    def check_sizes(self, stated: Mapping[str, object], sizes: tuple[int, int]) -> None:
        """Check that the configuration states the sizes of the weights.

        Parameters
        ----------
        stated : mapping of str to object
            Width of the activations and number of latents, in this order, by the names of their fields.
        sizes : tuple of int
            Those of the weights.

        Raises
        ------
        MoeProbeError
            When they differ.
        """
        if tuple(stated.values()) != sizes:
            fields = " and ".join(f"{name} {value}" for name, value in stated.items())
            raise MoeProbeError(f"{self.path} has {fields}", f"the weights are {sizes[0]} × {sizes[1]}", ONE_SAE)

    def flag(self, name: str) -> bool | None:
        """Read a field that is true, false or missing: the text "false" is neither.

        Raises
        ------
        MoeProbeError
            When it is something else.
        """
        value = self.config.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(name, value, "true or false is expected")
        return value

    def active_latents(self, name: str, value: object, d_sae: int) -> int:
        """Check a number of active latents per token, k.

        Parameters
        ----------
        name : str
            Its field.
        value : object
            Of the field.
        d_sae : int
            Number of latents.

        Returns
        -------
        int

        Raises
        ------
        MoeProbeError
            When it is missing, no whole number, below 1 or above the number of latents.
        """
        if value is None:
            raise MoeProbeError(
                f"{self.path} has no {name}",
                "the number of active latents per token cannot be derived from the weights",
                f'add "{name}" of the training to a copy of the folder',
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not 1 <= value <= d_sae:
            raise self.refuse(name, value, f"it must be a whole number from 1 to {d_sae}, the number of latents")
        return int(value)


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


def shown(value: object) -> str:
    """Write a value of a configuration for a message: short, and without control characters."""
    return clipped(json.dumps(value, ensure_ascii=True, default=str), 60)


def _among(value: object, values: Iterable[object]) -> bool:
    """Whether a value is among others; 0 and False, 1 and True are different values here."""
    return any(type(value) is type(other) and value == other for other in values)
