"""Next-token losses of held-out documents, with something in the model changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import track
from moe_probe.core.stats import group_names

if TYPE_CHECKING:
    import torch

    from moe_probe.models import LoadedModel
    from moe_probe.models.prefix import PrefixCache
    from moe_probe.models.suffix import SuffixCache
    from moe_probe.recording.trace import Trace


@dataclass(frozen=True)
class LossSample:
    """Held-out documents on which losses are compared.

    Attributes
    ----------
    ids, special : tuple of ndarray, shape (n_tokens,) each
        Token ids, and which tokens are special, by document.
    documents : tuple of int
        Rows of the documents in the trace's table.
    group : ndarray of str, shape (n_documents,), optional
        Groups, which are resampled together; each document its own if absent.
    batch_tokens : int
        Tokens of one forward pass, padding among them.
    """

    ids: tuple[np.ndarray, ...]
    special: tuple[np.ndarray, ...]
    documents: tuple[int, ...]
    group: np.ndarray | None = None
    batch_tokens: int = 4096


class Splice(NamedTuple):
    """What replaces the activations of text tokens, and where."""

    layer: int
    hook: str
    replace: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Suffix:
    """Results of the first pass over a sample, so that later ones predict changed tokens only.

    Attributes
    ----------
    cache : SuffixCache
    tokens : dict
        Loss of every token, by batch.
    """

    cache: SuffixCache
    tokens: dict[Hashable, torch.Tensor] = field(default_factory=dict)


def loss_sample(
    trace: Trace,
    held_out: np.ndarray,
    *,
    max_tokens: int = 8192,
    cut: int | None = None,
    seed: int = 0,
) -> LossSample:
    """Draw held-out documents, topics in turn, until about `max_tokens`.

    Parameters
    ----------
    trace : Trace
    held_out : ndarray of bool, shape (n_documents,)
    max_tokens : int
    cut : int, optional
        Tokens at which documents are cut, as they are at the trace's window length.
    seed : int
        Of the order of documents.

    Returns
    -------
    LossSample

    Raises
    ------
    MoeProbeError
        When no held-out document has two tokens.
    """
    documents = trace.documents
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.flatnonzero(held_out))
    rank = documents.iloc[chosen].groupby("topic").cumcount().to_numpy()
    chosen = chosen[np.argsort(rank, kind="stable")]
    windowing = trace.manifest.windowing
    limit = min(windowing.max_length if windowing is not None else 2048, cut or 2**31)
    table = trace.tokens(["document", "token_id", "special"])
    starts = np.searchsorted(table["document"].to_numpy(), np.arange(len(documents) + 1))
    ids, special = table["token_id"].to_numpy().astype(np.int64), table["special"].to_numpy()
    used: list[int] = []
    n_tokens = 0
    for document in chosen:
        size = min(int(starts[document + 1] - starts[document]), limit)
        if size > 1 and n_tokens < max_tokens:
            used.append(int(document))
            n_tokens += size
    parts = [slice(int(starts[d]), min(int(starts[d + 1]), int(starts[d]) + limit)) for d in used]
    if not used:
        raise MoeProbeError("no held-out document has two tokens", "there is no next token to predict", "longer documents")
    group = group_names(documents)[used]
    return LossSample(tuple(ids[p] for p in parts), tuple(special[p] for p in parts), tuple(used), group)


def losses(
    loaded: LoadedModel,
    sample: LossSample,
    splice: Splice | None = None,
    *,
    prefix: PrefixCache | None = None,
    suffix: Suffix | None = None,
) -> np.ndarray:
    """Measure the mean next-token loss of every document.

    Parameters
    ----------
    loaded : LoadedModel
    sample : LossSample
    splice : Splice, optional
        Applied to text tokens; special tokens and padding keep their activations, which no SAE was trained on.
    prefix : PrefixCache, optional
        Layers below what is changed are then run only once over the sample.
    suffix : Suffix, optional
        Only tokens whose last hidden state changed are then predicted anew.

    Returns
    -------
    ndarray, shape (n_documents,)
        In nats.

    Raises
    ------
    MoeProbeError
        When the model has no such layer, or its family no such hook point.
    """
    out, one_pass = np.zeros(len(sample.ids)), _Pass(loaded, sample, splice, prefix, suffix)
    order = sorted(range(len(sample.ids)), key=lambda i: -len(sample.ids[i]))
    batch: list[int] = []
    for i in track(order, "losses", unit="documents"):
        if batch and (len(batch) + 1) * len(sample.ids[batch[0]]) > sample.batch_tokens:
            out[batch] = one_pass.losses(batch)
            batch = []
        batch.append(i)
    out[batch] = one_pass.losses(batch)
    return out


def first_losses(loaded: LoadedModel, sample: LossSample) -> tuple[np.ndarray, Suffix | None]:
    """Measure losses of the model as it is, and keep what later passes need to predict changed tokens only.

    Parameters
    ----------
    loaded : LoadedModel
    sample : LossSample

    Returns
    -------
    plain : ndarray, shape (n_documents,)
    suffix : Suffix or None
        None where a pass that predicts every other token anew does not give the same losses to a millionth.
    """
    from moe_probe.models.suffix import SuffixCache

    suffix = Suffix(SuffixCache(loaded.model))
    plain = losses(loaded, sample, suffix=suffix)
    if not suffix.cache.usable:
        return plain, None
    suffix.cache.force = True
    try:
        again = losses(loaded, sample, suffix=suffix)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return plain, None  # the model wants all predictions at once, and gets them
    finally:
        suffix.cache.force = False
    return plain, suffix if np.allclose(again, plain, rtol=0, atol=1e-6) else None


class _Pass(NamedTuple):
    """One pass over a sample; the fields are those of `losses`."""

    loaded: LoadedModel
    sample: LossSample
    splice: Splice | None
    prefix: PrefixCache | None
    suffix: Suffix | None

    def losses(self, batch: list[int]) -> np.ndarray:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from moe_probe.models import forward_inputs, input_device
        from moe_probe.models.splice import spliced

        loaded, sample, splice, prefix, suffix = self
        device = input_device(loaded.model)
        ids = pad_sequence([torch.from_numpy(sample.ids[i]) for i in batch], batch_first=True)
        real = pad_sequence([torch.ones(len(sample.ids[i]), dtype=torch.bool) for i in batch], batch_first=True)
        text = pad_sequence([torch.from_numpy(~sample.special[i]) for i in batch], batch_first=True)
        wanted = torch.cat([real[:, 1:], torch.zeros(len(batch), 1, dtype=torch.bool)], dim=1)  # tokens with a next one
        with torch.inference_mode(), contextlib.ExitStack() as stack:
            if splice is not None:

                def replace(x: torch.Tensor) -> torch.Tensor:
                    return torch.where(text.reshape(-1, 1).to(x.device), splice.replace(x).to(x), x)

                stack.enter_context(spliced(loaded.model, site_of(loaded, splice.layer), splice.hook, replace))
            if prefix is not None:
                stack.enter_context(prefix.using(tuple(batch)))
            if suffix is not None:
                stack.enter_context(suffix.cache.using(tuple(batch), wanted))
            output = loaded.model(**forward_inputs(loaded.model, ids.to(device), real.long().to(device)))
            logits = getattr(output, "logits", None)
            if logits is None:
                raise MoeProbeError(
                    f"{type(loaded.model).__name__} predicts no tokens",
                    "it has no prediction head here, so that there is no loss to compare",
                    "a checkpoint of the whole language model",
                )
            following = torch.cat([ids[:, 1:], torch.zeros(len(batch), 1, dtype=torch.long)], dim=1).to(device)
            changed = None if suffix is None else suffix.cache.changed
            if suffix is None or changed is None:
                # text by text: a batch's log-probabilities do not fit the processor's cache
                flat = torch.stack([_surprise(x, y) for x, y in zip(logits, following, strict=True)])
                if suffix is not None:
                    suffix.tokens[tuple(batch)] = flat
            else:
                flat = suffix.tokens[tuple(batch)].clone()
                flat.view(-1)[changed] = _surprise(logits[0], following.flatten()[changed])
            flat = flat[:, :-1].cpu()
        return np.asarray(((flat * real[:, 1:]).sum(1) / real[:, 1:].sum(1)).numpy())


def _surprise(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every token, shape (n,)."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), following, reduction="none")


def site_of(loaded: LoadedModel, layer: int) -> Any:
    """Return the model's MoE layer of a number.

    Parameters
    ----------
    loaded : LoadedModel
    layer : int

    Returns
    -------
    object
        One of ``loaded.sites``.

    Raises
    ------
    MoeProbeError
        When there is none.
    """
    for site in loaded.sites:
        if site.info.layer == layer:
            return site
    raise MoeProbeError(
        f"the model has no MoE layer {layer}", f"it has {[s.info.layer for s in loaded.sites]}", "one of those"
    )
