"""One call of the model, recorded: which experts its tokens used and which features fired on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.sites import ActivationSite
from moe_probe.core.text import some_of
from moe_probe.models import RoutingCapture, SiteRecord, forward_inputs, input_device

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect import EncodedDocument, Window
    from moe_probe.sae import Sae


class Latents(NamedTuple):
    """Active latents of one SAE as triples, ordered by token: ``token, feature, value``, each of shape (n_active,)."""

    token: np.ndarray
    feature: np.ndarray
    value: np.ndarray

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens on which one feature fires, and its activations there."""
        rows = self.feature == feature
        return self.token[rows], self.value[rows]


@dataclass(frozen=True)
class Call:
    """A text as the model read it, token by token.

    Attributes
    ----------
    ids : ndarray of int64, shape (n_tokens,)
    strings : tuple of str
        Texts of the tokens as the tokenizer has them: hostile, to be escaped by whoever shows them.
    special, generated : ndarray of bool, shape (n_tokens,)
        Special tokens are left out of everything that is counted; generated ones were continued by the model.
    windows : int
        Forward passes that a long text was cut into.
    layers : tuple of int
        Numbers of the MoE layers, in the order of the arrays' second axis.
    experts : ndarray of int32, shape (n_tokens, n_layers, n_slots)
        -1 where a slot is empty.
    weights : ndarray of float32, same shape
        Gate weights as the experts were given them; 0 where a slot is empty.
    latents : mapping of str to Latents
        By the SAE's folder, text tokens only.
    """

    ids: np.ndarray
    strings: tuple[str, ...]
    special: np.ndarray
    generated: np.ndarray
    windows: int
    layers: tuple[int, ...]
    experts: np.ndarray
    weights: np.ndarray
    latents: Mapping[str, Latents]

    @property
    def text(self) -> np.ndarray:
        """Rows of the tokens that are counted: all but special ones."""
        return np.flatnonzero(~self.special)


def record_call(
    loaded: LoadedModel, encoded: EncodedDocument, saes: Mapping[str, Sae], *, strings: Sequence[str], generated: np.ndarray
) -> Call:
    """Run a text through the model, window by window, and keep its routing and the features that fire.

    Activations are encoded window by window, all tokens of a window at once; only active latents are kept.

    Parameters
    ----------
    loaded : LoadedModel
    encoded : EncodedDocument
        Tokens and windows, as collecting makes them.
    saes : mapping of str to Sae
        By folder.
    strings : sequence of str
        Texts of the tokens.
    generated : ndarray of bool, shape (n_tokens,)

    Returns
    -------
    Call

    Raises
    ------
    MoeProbeError
        When the model has no layer that an SAE reads, activations have another width, or rows are not tokens.
    """
    index_of = {site.info.layer: i for i, site in enumerate(loaded.sites)}
    slots = max(site.info.top_k for site in loaded.sites)
    shape = (len(encoded.ids), len(loaded.sites), slots)
    experts, weights = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    parts: dict[str, list[Latents]] = {name: [] for name in saes}
    done = 0
    with torch.inference_mode(), capture_for(loaded, saes) as capture:
        for window in encoded.windows:
            records = run_window(loaded, window, capture, logits=False)
            rows = np.arange(done, done + window.record.stop - window.record.start)
            for i, record in enumerate(records):
                k = record.experts.shape[1]
                experts[rows, i, :k] = record.experts[window.record].cpu().numpy()
                weights[rows, i, :k] = record.weights[window.record].cpu().numpy()
            text = np.flatnonzero(~encoded.special[rows])
            for name, sae in saes.items():
                record = records[_layer_index(index_of, name, sae)]
                parts[name].append(_active(sae, record, torch.from_numpy(text + window.record.start), rows[text], name))
            done += len(rows)
    return Call(
        encoded.ids,
        tuple(strings),
        encoded.special,
        generated,
        len(encoded.windows),
        tuple(index_of),
        experts,
        weights,
        {name: Latents(*map(np.concatenate, zip(*latents, strict=True))) for name, latents in parts.items()},
    )


def capture_for(loaded: LoadedModel, saes: Mapping[str, Sae]) -> RoutingCapture:
    """Make hooks for the routing of every layer, and for what these SAEs read at theirs.

    Parameters
    ----------
    loaded : LoadedModel
    saes : mapping of str to Sae
        By folder.

    Returns
    -------
    RoutingCapture
    """
    return RoutingCapture(
        loaded.model,
        loaded.sites,
        keep={ActivationSite(sae.config.hook).part for sae in saes.values()},
        keep_layers={sae.config.layer for sae in saes.values()},
    )


def run_window(loaded: LoadedModel, window: Window, capture: RoutingCapture, *, logits: bool) -> list[SiteRecord]:
    """Run one forward pass inside a capture.

    Parameters
    ----------
    loaded : LoadedModel
    window : Window
    capture : RoutingCapture
    logits : bool
        Form predictions.

    Returns
    -------
    list of SiteRecord
        One per MoE layer.

    Raises
    ------
    MoeProbeError
        When rows cannot be told apart by token.
    """
    ids = torch.from_numpy(window.ids)[None].to(input_device(loaded.model))
    loaded.model(**forward_inputs(loaded.model, ids, logits=logits))
    records = capture.take()
    for site, record in zip(loaded.sites, records, strict=True):
        if len(record.experts) != len(window.ids):
            raise MoeProbeError(
                f"{site.info.name} routed {len(record.experts)} rows for {len(window.ids)} tokens",
                "rows cannot be told apart by token",
                "report this model family",
            )
    return records


def _layer_index(index_of: Mapping[int, int], name: str, sae: Sae) -> int:
    if sae.config.layer not in index_of:
        raise MoeProbeError(
            f"the SAE {name} reads layer {sae.config.layer}",
            f"the model has the MoE layers {some_of(index_of, 12)}",
            "an SAE of this model",
        )
    return index_of[sae.config.layer]


def read_by(sae: Sae, record: SiteRecord, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the activations that an SAE reads.

    Parameters
    ----------
    sae : Sae
    record : SiteRecord
        Of its layer.
    rows : Tensor of int, shape (n,)
        Tokens of the window.

    Returns
    -------
    values : Tensor, shape (n_read, d_in)
    read : Tensor of int, shape (n_read,)
        Which of the rows they belong to: not all, for an SAE of some experts.
    """
    from moe_probe.sae.activations import Batch, select

    values = getattr(record, ActivationSite(sae.config.hook).part)
    rows = rows.to(values.device)
    batch = Batch(values[rows].cpu(), record.experts[rows.to(record.experts.device)].cpu().int(), rows.cpu())
    read = torch.arange(len(rows))
    if sae.config.experts is not None:
        read = torch.isin(batch.experts, torch.tensor(sae.config.experts, dtype=batch.experts.dtype)).any(1).nonzero()[:, 0]
    return select(batch, sae.config), read


def _active(sae: Sae, record: SiteRecord, rows: torch.Tensor, tokens: np.ndarray, name: str) -> Latents:
    """Latents that are active on some rows of a window; `tokens` numbers these in the text."""
    values, read = read_by(sae, record, rows)
    if values.shape[1] != sae.config.d_in:
        raise MoeProbeError(
            f"the SAE {name} takes activations of width {sae.config.d_in}",
            f"the model's have width {values.shape[1]}",
            "an SAE of this model and hook",
        )
    if not len(values):
        return Latents(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    latents = sae.encode(values)
    row, slot = (latents.values > 0).nonzero(as_tuple=True)
    return Latents(tokens[read[row].numpy()], latents.indices[row, slot].numpy(), latents.values[row, slot].numpy())


def continuation(loaded: LoadedModel, ids: np.ndarray, *, n: int, temperature: float = 0.0, seed: int = 0) -> np.ndarray:
    """Have the model continue a text.

    Parameters
    ----------
    loaded : LoadedModel
    ids : ndarray of int64, shape (n_tokens,)
        The text, without special tokens behind it.
    n : int
        New tokens at most; the model may end earlier.
    temperature : float
        0 takes the likeliest token each time; above it, tokens are drawn.
    seed : int

    Returns
    -------
    ndarray of int64
        The new tokens only.

    Raises
    ------
    UsageError
        When text and continuation are longer than the model's context.
    MoeProbeError
        When the model does not generate.
    """
    if len(ids) + n > loaded.max_length:
        room = loaded.max_length - len(ids)
        raise UsageError(
            f"{n} more tokens do not fit behind {len(ids)} tokens of text",
            f"the model's context is {loaded.max_length}",
            f"--generate {room}" if room > 0 else "a shorter text",
        )
    model: Any = loaded.model
    if not model.can_generate() or getattr(model.config, "is_encoder_decoder", False):
        raise MoeProbeError(
            f"{type(model).__name__} does not continue text", "it is not a decoder language model", "omit --generate"
        )
    given = torch.from_numpy(ids)[None].to(input_device(model))
    drawn = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode(), torch.random.fork_rng():  # the caller's random state stays as it was
        torch.manual_seed(seed)
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=n, num_beams=1, **drawn)
    return np.asarray(out[0, len(ids) :].cpu().numpy(), dtype=np.int64)
