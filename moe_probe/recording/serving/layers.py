"""The layers of a served model, and the columns of a server's arrays that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import MoeLayer
from moe_probe.core.text import some_of
from moe_probe.recording.serving.engines import UnroutedError
from moe_probe.recording.serving.settings import ServerSettings
from moe_probe.recording.trace.checks import check_layers, first_repeat

if TYPE_CHECKING:
    from moe_probe.models.outline import ModelOutline

_NOTE = "recorded by a server; weights not verified"


@dataclass(frozen=True)
class ServedLayers:
    """Which routing is recorded.

    Attributes
    ----------
    layers : tuple of MoeLayer
    n_hidden : int
        Layers of the model, dense ones included; 0 where they are not known.
    """

    layers: tuple[MoeLayer, ...]
    n_hidden: int

    @property
    def top_k(self) -> int:
        """Most experts per token of a layer."""
        return max(layer.top_k for layer in self.layers)

    @property
    def n_columns(self) -> int | None:
        """Layers that a server's arrays should have; None where that is not known."""
        return self.n_hidden or None

    def check(self, experts: np.ndarray) -> None:
        """Refuse routing of another shape than the model's, as the first answer shows it.

        Parameters
        ----------
        experts : ndarray of int64, shape (n_tokens, n_columns, n_slots)

        Raises
        ------
        MoeProbeError
            Naming what differs.
        """
        n_columns, n_slots = experts.shape[1:]
        if n_slots != self.top_k:
            raise MoeProbeError(
                f"the server returns {n_slots} experts per token",
                f"the model has {self.top_k}",
                "MODEL with the served model's config.json; in SGLang --disable-shared-experts-fusion",
            )
        columns = self._columns(n_columns)
        if columns is None:
            hidden = f" of {self.n_hidden} layers" if self.n_hidden else ""
            raise MoeProbeError(
                f"the server returns routing of {n_columns} layers",
                f"the model has {len(self.layers)} MoE layers{hidden}, up to layer {self.layers[-1].layer}",
                "MODEL with the served model's config.json, or --layers, --num-experts and --top-k",
            )

    def select(self, experts: np.ndarray, dtype: str) -> np.ndarray:
        """Take the MoE layers out of a server's arrays, and check that they are routing.

        Parameters
        ----------
        experts : ndarray of int64, shape (n_tokens, n_columns, n_slots)
        dtype : str
            Type of the trace's ids.

        Returns
        -------
        ndarray of `dtype`, shape (n_tokens, n_layers, n_slots)

        Raises
        ------
        UnroutedError
            When a token has no expert in a layer, or one twice.
        MoeProbeError
            When an id is past the layer's experts.
        """
        columns = self._columns(experts.shape[1])
        if columns is None or experts.shape[2] != self.top_k:
            raise UnroutedError(f"routing of shape {experts.shape}, unlike the answers before")
        ids, empty = experts[:, columns], np.iinfo(dtype).max
        largest = ids.max(axis=(0, 2), initial=-1)
        missing = ids.min(axis=0, initial=0) < 0
        kept = np.where(ids < 0, empty, ids).astype(dtype)
        for i, layer in enumerate(self.layers):
            kept[:, i, layer.top_k :] = empty
            if int(largest[i]) >= layer.num_experts:
                raise MoeProbeError(
                    f"the server returns expert {int(largest[i])} of layer {layer.layer}, which has {layer.num_experts}",
                    "another model, or numbers of physical replicas (expert parallel load balancing)",
                    "MODEL with the served model's config.json, and a server without redundant experts",
                )
            if missing[i, : layer.top_k].any():
                raise UnroutedError(f"no expert in layer {layer.layer} for some tokens of the prompt")
            if (row := first_repeat(kept[:, i], empty)) is not None:
                raise UnroutedError(f"layer {layer.layer} selects an expert twice ({kept[row, i].tolist()}): is it dense?")
        return kept

    def _columns(self, n_columns: int) -> list[int] | None:
        """Columns of the layers: there is one for every layer of the model, or for its MoE layers only."""
        numbers = [layer.layer for layer in self.layers]
        if n_columns == self.n_hidden or (not self.n_hidden and n_columns > numbers[-1]):
            return numbers if numbers[-1] < n_columns else None
        return list(range(n_columns)) if n_columns == len(numbers) else None


def served_layers(outline: ModelOutline, settings: ServerSettings) -> ServedLayers:
    """Say which layers are recorded: those of the configuration, else those of the options.

    Parameters
    ----------
    outline : ModelOutline
        Of the served model.
    settings : ServerSettings

    Returns
    -------
    ServedLayers

    Raises
    ------
    UsageError
        When options are missing, or contradict the configuration.
    """
    given = (settings.num_experts, settings.top_k, settings.layers or None)
    if outline.layers:
        layers = outline.layers
        known = ({x.num_experts for x in layers}, {x.top_k for x in layers}, {x.layer for x in layers})
        flags = zip(("--num-experts", "--top-k", "--layers"), given, known, strict=True)
        for flag, value, values in flags:
            if value is not None and (set(value) if isinstance(value, tuple) else {value}) != values:
                shown = some_of(value) if isinstance(value, tuple) else value
                raise UsageError(
                    f"{flag} {shown} contradicts config.json", f"it says {some_of(sorted(values))}", f"omit {flag}"
                )
        noted = (
            x.model_copy(update={"capture": "served", "note": f"{x.note}; {_NOTE}" if x.note else _NOTE}) for x in layers
        )
        return ServedLayers(tuple(noted), outline.n_hidden)
    num_experts, top_k, numbers = given
    if num_experts is None or top_k is None or numbers is None:
        raise UsageError(
            "the MoE layers of the served model are not known",
            outline.unknown or "the configuration describes none",
            "--num-experts, --top-k and --layers, as --num-experts 64 --top-k 8 --layers 1-26",
        )
    if top_k > num_experts:
        raise UsageError(f"--top-k {top_k} is more than --num-experts {num_experts}", "", "check the model's config.json")
    check_layers(numbers)
    made = (
        MoeLayer(layer=n, name=f"layer {n}", num_experts=num_experts, top_k=top_k, capture="served", note=_NOTE)
        for n in sorted(numbers)
    )
    return ServedLayers(tuple(made), outline.n_hidden)
