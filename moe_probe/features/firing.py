"""Where every latent of an SAE fires in a trace: a sparse matrix of tokens by features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import group_names
from moe_probe.recording.corpus.splits import stratified_split

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.recording.trace import Trace
    from moe_probe.sae import ActivationReader, Sae

TRAIN, HELD_OUT = "train", "held-out"
#: Share of documents that SAEs and labels never see.
HELD_OUT_SHARE = 0.25
_CHUNK = 8192


@dataclass(frozen=True)
class Firings:
    """Activations of all latents over some tokens.

    Attributes
    ----------
    matrix : csr_array of float32, shape (n_tokens, d_sae)
        Positive entries only.
    rows : ndarray of int64, shape (n_tokens,)
        Rows of the tokens in the trace, increasing.
    """

    matrix: sparse.csr_array
    rows: np.ndarray

    def select(self, keep: np.ndarray) -> Firings:
        """Keep some tokens (boolean mask)."""
        return Firings(self.matrix[np.flatnonzero(keep)], self.rows[keep])

    @property
    def counts(self) -> np.ndarray:
        """Tokens on which each latent fires, shape (d_sae,)."""
        return np.bincount(self.matrix.indices, minlength=self.matrix.shape[1])


def held_out_documents(trace: Trace, *, share: float = HELD_OUT_SHARE, seed: int = 0) -> np.ndarray:
    """Say which documents are kept from SAEs and labels, whole groups together, each topic to the same share.

    Returns
    -------
    ndarray of bool, shape (n_documents,)

    Raises
    ------
    MoeProbeError
        When there are too few documents to hold any out.
    """
    documents = trace.documents
    groups = group_names(documents)
    topics = documents["topic"].astype(str).to_numpy()
    if len(set(groups)) < 2:
        raise MoeProbeError(
            "a single document (or group of documents) cannot be divided",
            "features are measured on documents that they were not learnt from",
            "a corpus of more documents",
        )
    parts = {TRAIN: 1 - share, HELD_OUT: share}
    part = stratified_split(list(topics), list(groups), shares=parts, seed=seed)
    if len(set(part)) < 2:  # topics of one or two documents: divide without regard to topic
        part = stratified_split([""] * len(groups), list(groups), shares=parts, seed=seed)
    if len(set(part)) < 2:  # as few as two documents
        part = np.where(groups == sorted(set(groups))[-1], HELD_OUT, TRAIN)
    return np.asarray(part == HELD_OUT)


def fire(sae: Sae, reader: ActivationReader, *, only: np.ndarray | None = None) -> Firings:
    """Encode all tokens of a reader, or some of them.

    For an SAE of some experts, tokens that chose none of them are left out.

    Parameters
    ----------
    only : ndarray of int, optional
        Rows of the trace; other tokens are left out.

    Raises
    ------
    MoeProbeError
        When the activations have another width, or hold NaN or infinite numbers.
    """
    import torch
    from scipy import sparse

    from moe_probe.sae.activations import Batch, select

    if sae.config.d_in != reader.d_in:
        raise MoeProbeError(
            f"the SAE takes activations of width {sae.config.d_in}",
            f"the {reader.hook} of this trace has width {reader.d_in}",
            "an SAE of this model and hook",
        )
    blocks, rows = [], []
    with torch.inference_mode():
        for batch in reader.in_order():
            if only is not None:
                wanted = torch.from_numpy(np.isin(batch.rows.numpy(), only))
                batch = Batch(*(part[wanted] for part in batch))
            values = select(batch, sae.config)
            kept = batch.rows
            if sae.config.experts is not None:
                kept = kept[torch.isin(batch.experts, torch.tensor(sae.config.experts)).any(1)]
            rows.append(kept.numpy())
            for piece in values.split(_CHUNK):
                latents = sae.encode(piece)
                token, slot = (latents.values > 0).nonzero(as_tuple=True)
                blocks.append(
                    sparse.csr_array(
                        (latents.values[token, slot].numpy(), (token.numpy(), latents.indices[token, slot].numpy())),
                        shape=(len(piece), sae.config.d_sae),
                        dtype=np.float32,
                    )
                )
    matrix = sparse.vstack(blocks, format="csr")
    matrix.sort_indices()
    return Firings(matrix, np.concatenate(rows))
