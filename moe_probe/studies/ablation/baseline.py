"""A model with held-out documents and its losses on them as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import labelled_documents
from moe_probe.features.spliced_loss import LossSample, Suffix, first_losses, loss_sample

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.trace import Trace
    from moe_probe.studies.ablation.settings import AblationSettings


@dataclass(frozen=True)
class AblationBaseline:
    """A model with the documents that losses are measured on.

    Attributes
    ----------
    loaded : LoadedModel
    sample : LossSample
    losses : ndarray, shape (n_documents,)
        Mean next-token loss of every document with the model as it is, nats a token.
    topic, group : ndarray of int, shape (n_documents,)
        Index into `topics`, and number of the group of documents.
    topics : tuple of str
    suffix : Suffix or None
        For predicting changed tokens only.
    """

    loaded: LoadedModel
    sample: LossSample
    losses: np.ndarray
    topic: np.ndarray
    group: np.ndarray
    topics: tuple[str, ...]
    suffix: Suffix | None

    @property
    def weights(self) -> np.ndarray:
        """Predicted tokens of every document, shape (n_documents,)."""
        return np.array([len(ids) - 1 for ids in self.sample.ids], dtype=np.float64)


def measure_baseline(
    loaded: LoadedModel, trace: Trace, held_out: np.ndarray, settings: AblationSettings
) -> AblationBaseline:
    """Choose documents for losses, all held-out ones if they fit when they are cut short, and measure them as they are.

    Parameters
    ----------
    loaded : LoadedModel
    trace : Trace
    held_out : ndarray of bool, shape (n_documents,)
    settings : AblationSettings
        Its label column, number of tokens and seed are used.

    Returns
    -------
    AblationBaseline

    Raises
    ------
    MoeProbeError
        When the model is not the trace's, or fewer than two topics have documents.
    """
    from moe_probe.core.schema import need_same_weights

    need_same_weights(loaded.like(trace.manifest.model).info, trace.manifest.model)
    keep, labels, names = labelled_documents(trace.documents, label=settings.by)
    held_out = held_out & keep
    # more documents say more than longer ones: intervals come from documents
    cut = max(64, settings.tokens // max(int(held_out.sum()), 1))
    sample = loss_sample(trace, held_out, max_tokens=settings.tokens, cut=cut, seed=settings.seed)
    rows = list(sample.documents)
    topics, topic = np.unique(labels[rows].astype(str), return_inverse=True)
    if len(topics) < 2:
        raise MoeProbeError(
            f"the held-out documents have one {settings.by}", "there is nothing to compare it with", "more documents"
        )
    _, group = np.unique(names[rows].astype(str), return_inverse=True)
    losses, suffix = first_losses(loaded, sample)
    return AblationBaseline(loaded, sample, losses, topic, group, tuple(str(t) for t in topics), suffix)
