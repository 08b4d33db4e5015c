"""Measures of a run's SAEs, and labels of their features, into RUN/results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.core.stats import group_names
from moe_probe.core.text import figure
from moe_probe.core.units import format_members
from moe_probe.features.describe import GOOD_HARD_SCORE, GOOD_SCORE
from moe_probe.sae.store import readers, saes_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.models import LoadedModel
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import ActivationReader, Sae

_QUALITY_SOURCES = (
    "Gao et al. 2024, scaling and evaluating sparse autoencoders, arXiv:2406.04093",
    "Bricken et al. 2023, Towards Monosemanticity, https://transformer-circuits.pub/2023/monosemantic-features",
    "Rajamanoharan et al. 2024, loss recovered and fidelity, arXiv:2407.14435",
)
_LABEL_SOURCES = (
    "Grootendorst 2022, c-TF-IDF (BERTopic), arXiv:2203.05794",
    "Paulo et al. 2024, detection scoring of feature labels, arXiv:2410.13928",
    "Westfall and Young 1993; Benjamini and Hochberg 1995, DOI 10.1111/j.2517-6161.1995.tb02031.x",
)


@dataclass(frozen=True)
class _Opened:
    """An SAE of a run with its activations and the documents held out from it."""

    name: str
    folder: Path
    sae: Sae
    train: ActivationReader
    held_out: ActivationReader
    held: np.ndarray

    def fired(self) -> tuple[Firings, Firings]:
        """Firings of training and held-out documents; those of recent SAEs are remembered, since stages share them."""
        from moe_probe.features.firing import fire

        weights, trace = (self.folder / "sae_weights.safetensors").stat(), self.train.trace
        key = (
            str(self.folder.resolve()),
            weights.st_mtime_ns,
            weights.st_size,
            str(trace.root.resolve()),
            (trace.root / "trace.json").stat().st_mtime_ns,
            self.held.tobytes(),
        )
        if key not in _FIRED:
            found = fire(self.sae, self.train), fire(self.sae, self.held_out)
            size = sum(f.matrix.data.nbytes + f.matrix.indices.nbytes + f.rows.nbytes for f in found)
            if size > _FIRED_BYTES:
                return found
            while _FIRED and size + sum(kept for kept, _ in _FIRED.values()) > _FIRED_BYTES:
                _FIRED.pop(next(iter(_FIRED)))
            _FIRED[key] = size, found
        return _FIRED[key][1]


#: Firings of SAEs that were opened last, by what they depend on; and bytes that they may take.
_FIRED: dict[tuple[object, ...], tuple[int, tuple[Firings, Firings]]] = {}
_FIRED_BYTES = 2**29


def opened_saes(run: Path, trace: Trace) -> Iterator[_Opened]:
    """Open the SAEs of a run one after the other.

    Raises
    ------
    MoeProbeError
        When there are none, or one does not fit the trace.
    """
    from moe_probe.sae import load_sae, read_training
    from moe_probe.sae.held_out import held_out_documents

    for folder in saes_of(run):
        sae = load_sae(folder)
        held = held_out_documents(trace, seed=int(read_training(folder).get("held_out_seed", 0)))
        first, second = readers(trace, sae, held)
        yield _Opened(f"{folder.parent.name}/{folder.name}", folder, sae, first, second, held)


def evaluate(
    run: Path, trace: Trace, *, loaded: LoadedModel | None = None, tokens: int = 8192, seed: int = 0, say: Say = print
) -> Result:
    """Measure all SAEs of a run on held-out documents.

    Parameters
    ----------
    loaded : LoadedModel, optional
        The trace's model, for the loss with reconstructions spliced in; those columns are NaN without it.
    tokens : int
        Tokens of held-out documents that losses are measured on.

    Returns
    -------
    Result
        ``sae_quality``: ``sae, layer, width, hook, architecture, k, experts, tokens`` (held-out), ``fvu, l0, dead, dense,
        redundancy, duplicates, ce_model, ce_spliced, ce_zero, ce_mean, ce_recovered, ce_recovered_low, ce_recovered_high,
        ce_recovered_mean, train_tokens, train_seconds``.

    Raises
    ------
    MoeProbeError
        When there are no SAEs, or the model is not the trace's.
    """
    import pandas as pd

    from moe_probe.features.quality import quality_row
    from moe_probe.sae import read_training

    _same_model(loaded, trace)
    losses = _Losses(loaded, trace, tokens=tokens, seed=seed)
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    for item in track(opened_saes(run, trace), "measure SAEs", total=len(saes_of(run)), unit="SAEs"):
        started = time.monotonic()
        config, training = item.sae.config, read_training(item.folder)
        row = {
            "sae": item.name,
            "layer": config.layer,
            "width": config.d_sae,
            "hook": config.hook,
            "architecture": config.architecture,
            "k": config.k if training.get("k_known", True) else 0,
            "experts": "" if config.experts is None else format_members(config.experts),
            **quality_row(item.sae, item.held_out, item.fired()[1]),
            **losses.of(item, warnings),
            "train_tokens": training.get("tokens", 0),
            "train_seconds": training.get("seconds", float("nan")),
        }
        rows.append(row)
        say(
            f"{item.name}: FVU {figure(row['fvu'], '.3f', 'unknown')}, L0 {row['l0']:.1f}, loss recovered "
            f"{figure(row['ce_recovered'], '.3f', 'not measured')} "
            f"({time.monotonic() - started:.1f} s)"
        )
    return Result(
        "sae_quality",
        pd.DataFrame(rows),
        seed=seed,
        warnings=tuple(dict.fromkeys(warnings)),
        citations=_QUALITY_SOURCES,
        params={"loss_tokens": losses.n_tokens, "loss_documents": losses.n_documents},
        caption="Held-out documents. FVU: fraction of variance unexplained. L0: active latents a token. Dead: share of "
        "latents that never fire; dense: that fire on more than a tenth of the tokens. Loss recovered: with the "
        "reconstruction in the place of the activation, over the loss that zeros there would cost (1: nothing is lost); "
        "95 % intervals from a bootstrap over groups of documents; the stricter version has the mean activation in the place of "
        "zeros. "
        "Redundancy: mean over living latents of the largest cosine with another's decoder row.",
    )


class _Losses:
    """Losses as is and ablated, which SAEs of one layer and hook share."""

    def __init__(self, loaded: LoadedModel | None, trace: Trace, *, tokens: int, seed: int) -> None:
        self.loaded, self.trace, self.tokens, self.seed = loaded, trace, tokens, seed
        self.n_tokens = self.n_documents = 0
        self._kept: dict[Any, Any] = {}

    def of(self, item: _Opened, warnings: list[str]) -> dict[str, float]:
        import numpy as np

        from moe_probe.features.quality import ablated_losses, loss_recovered
        from moe_probe.features.spliced_loss import loss_sample, losses

        names = (
            "ce_model",
            "ce_spliced",
            "ce_zero",
            "ce_mean",
            "ce_recovered",
            "ce_recovered_low",
            "ce_recovered_high",
            "ce_recovered_mean",
        )
        nothing = dict.fromkeys(names, float("nan"))
        config = item.sae.config
        if self.loaded is None:
            warnings.append("Losses were not measured: no model was named (moe-probe sae eval RUN --model MODEL).")
            return nothing
        if config.experts is not None:
            warnings.append("SAEs of some experts are not spliced in: they speak of some tokens only.")
            return nothing
        held = item.held.tobytes()
        try:
            if held not in self._kept:
                sample = loss_sample(self.trace, item.held, max_tokens=self.tokens, seed=self.seed)
                self._kept[held] = sample, losses(self.loaded, sample)
            sample, plain = self._kept[held]
            self.n_tokens, self.n_documents = sum(map(len, sample.ids)), len(sample.ids)
            key = (held, config.layer, config.hook)
            if key not in self._kept:
                self._kept[key] = ablated_losses(self.loaded, config.layer, config.hook, sample, mean=_mean(item.train))
            found = loss_recovered(
                self.loaded,
                item.sae,
                sample,
                plain=plain,
                ablated=self._kept[key],
                seed=self.seed,
                group=group_names(self.trace.documents)[list(sample.documents)],
            )
        except MoeProbeError as error:
            warnings.append(f"Losses of {config.hook} were not measured: {error}")
            return nothing
        return {name: float(np.float64(found[name])) for name in names}


def _mean(reader: ActivationReader) -> Any:
    import torch

    total, n = torch.zeros(reader.d_in, dtype=torch.float64), 0
    for batch in reader.in_order():
        total += batch.values.reshape(len(batch.values), -1, reader.d_in).double().sum((0, 1))
        n += len(batch.rows)
    return (total / n).float()


def _same_model(loaded: LoadedModel | None, trace: Trace) -> None:
    from moe_probe.core.schema import need_same_weights

    if loaded is not None:
        need_same_weights(loaded.info, trace.manifest.model)


def label(
    run: Path,
    trace: Trace,
    *,
    by: str = "topic",
    finer: str | None = "subtopic",
    permutations: int = 1000,
    alpha: float = 0.05,
    cards: int = 8,
    seed: int = 0,
    strata: str | None = None,
    say: Say = print,
) -> tuple[Result, Result]:
    """Label the features of all SAEs of a run by rules, and score the labels on held-out documents.

    Parameters
    ----------
    by, finer : str
        Labels of documents that features are tested against.
    cards : int
        Features of every SAE that get a card.
    strata : str, optional
        Label within which these are permuted.

    Returns
    -------
    features, feature_cards : Result
        With the columns of `describe_features`, and ``sae``, the SAE's folder.

    Raises
    ------
    MoeProbeError
        When there are no SAEs.
    """
    import pandas as pd

    from moe_probe.experts.topics import other_labels
    from moe_probe.features.describe import describe_features
    from moe_probe.features.labels.context import surroundings

    spoken = tuple(dict.fromkeys([by, *other_labels(trace.usage(), label=by)]))
    finer = finer if finer in spoken else None
    text = surroundings(trace, labels=spoken)
    tables: list[pd.DataFrame] = []
    cards_of: list[pd.DataFrame] = []
    warnings: list[str] = []
    for item in track(opened_saes(run, trace), "label features", total=len(saes_of(run)), unit="SAEs"):
        started = time.monotonic()
        train, held_out = item.fired()
        found = describe_features(
            trace,
            item.sae,
            text,
            train=train,
            held_out=held_out,
            label=by,
            finer=finer,
            cards=cards,
            permutations=permutations,
            alpha=alpha,
            seed=seed,
            strata=strata,
        )
        tables.append(found.features.assign(sae=item.name))
        cards_of.append(found.cards.assign(sae=item.name))
        warnings += found.warnings
        say(
            f"{item.name}: {int(found.features['good'].sum()):,} of {len(found.features):,} features have a good label "
            f"({time.monotonic() - started:.1f} s)"
        )
    params = {
        "by": by,
        "finer": finer,
        "strata": strata,
        "permutations": permutations,
        "alpha": alpha,
        "factors": [f.name for f in text.factors],
        "good_score": GOOD_SCORE,
        "good_hard_score": GOOD_HARD_SCORE,
    }
    told = tuple(dict.fromkeys(warnings))
    return (
        Result(
            "features",
            pd.concat(tables, ignore_index=True),
            params=params,
            seed=seed,
            warnings=told,
            citations=_LABEL_SOURCES,
            caption=_caption(by, strata),
        ),
        Result(
            "feature_cards",
            pd.concat(cards_of, ignore_index=True),
            params=params,
            seed=seed,
            caption="Excerpts of held-out documents around firings of all strengths, and around tokens where the "
            "feature is silent; activations per token.",
        ),
    )


def _caption(by: str, strata: str | None) -> str:
    within = f" within each {strata}" if strata else ""
    return (
        "Each label is a rule (words, pieces, the word before, kinds of token, places, topics, words nearby) that is "
        "made "
        "on training documents and scored on held-out ones: the label score is the balanced accuracy of telling firing "
        "tokens, of all strengths, from silent ones; the hard score has only tokens on which the feature of nearest "
        "decoder "
        f"direction fires for silent ones. Good: {GOOD_SCORE:g} and {GOOD_HARD_SCORE:g} or more. {by.capitalize()}: "
        f"Welch's t of firing rates of documents, {by} against rest, labels permuted over groups of documents{within}; "
        "Benjamini-Hochberg over the features of an SAE. AUROC: of held-out documents."
    )
