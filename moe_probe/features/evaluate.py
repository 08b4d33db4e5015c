"""Quality of a run's SAEs on held-out documents."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.core.schema import need_same_weights
from moe_probe.core.text import figure
from moe_probe.core.units import format_members
from moe_probe.features.quality import ablated_losses, loss_recovered, quality_row
from moe_probe.features.run_saes import RunSaes
from moe_probe.features.spliced_loss import LossSample, loss_sample, losses

if TYPE_CHECKING:
    import torch

    from moe_probe.features.run_saes import OpenSae
    from moe_probe.models import LoadedModel
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae import ActivationReader

_SOURCES = (
    "Gao et al. 2024, quality of sparse autoencoders, arXiv:2406.04093",
    "Bricken et al. 2023, dead and dense latents, https://transformer-circuits.pub/2023/monosemantic-features",
    "Rajamanoharan et al. 2024, loss recovered and fidelity, arXiv:2407.14435",
)
_CAPTION = (
    "Quality of every SAE on held-out documents. FVU is the fraction of variance unexplained, L0 the number of active latents "
    "per token. Dead latents never fire; dense ones fire on more than a tenth of the tokens. Loss recovered compares the "
    "reconstruction with zeros in place of the activation (1: no loss); the stricter version compares it with the mean "
    "activation. Intervals: 95 %, bootstrap over groups of documents. Redundancy: mean over living latents of the largest "
    "cosine with another latent's decoder row."
)
_LOSS_COLUMNS = (
    "ce_model",
    "ce_spliced",
    "ce_zero",
    "ce_mean",
    "ce_recovered",
    "ce_recovered_low",
    "ce_recovered_high",
    "ce_recovered_mean",
)


@dataclass(frozen=True)
class EvaluateSettings:
    """How losses are measured.

    Attributes
    ----------
    tokens : int
        Tokens of held-out documents.
    seed : int
        Of the choice of documents and of the bootstrap.
    """

    tokens: int = 8192
    seed: int = 0


def evaluate(
    run: RunDirectory,
    settings: EvaluateSettings | None = None,
    *,
    loaded: LoadedModel | None = None,
    saes: RunSaes | None = None,
    say: Say = print,
) -> Result:
    """Measure all SAEs of a run on held-out documents.

    Parameters
    ----------
    run : RunDirectory
    settings : EvaluateSettings, optional
    loaded : LoadedModel, optional
        The trace's model, for the loss with reconstructions spliced in; those columns are NaN without it.
    saes : RunSaes, optional
        Of the run; pass the same object to `label` and `match` to encode its documents once.
    say : callable
        Takes a line of progress.

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

    from moe_probe.sae import read_training

    settings = settings or EvaluateSettings()
    if loaded is not None:
        need_same_weights(loaded.like(run.manifest.model).info, run.manifest.model)
    saes = saes or RunSaes(run)
    measured = _SplicedLosses(loaded, run, settings)
    rows: list[dict[str, Any]] = []
    for item in track(saes, "measure SAEs", unit="SAEs"):
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
            **quality_row(item.sae, item.held_out, saes.firings(item).held_out),
            **measured.row(item),
            "train_tokens": training.get("tokens", 0),
            "train_seconds": training.get("seconds", float("nan")),
        }
        rows.append(row)
        say(
            f"{item.name}: FVU {figure(row['fvu'], '.3f', 'unknown')}, L0 {row['l0']:.1f}, loss recovered "
            f"{figure(row['ce_recovered'], '.3f', 'not measured')} ({time.monotonic() - started:.1f} s)"
        )
    return Result(
        "sae_quality",
        pd.DataFrame(rows),
        seed=settings.seed,
        warnings=tuple(dict.fromkeys(measured.warnings)),
        citations=_SOURCES,
        params={"loss_tokens": measured.n_tokens, "loss_documents": measured.n_documents},
        caption=_CAPTION,
    )


class _SplicedLosses:
    """Losses with the reconstruction of each SAE spliced in; losses as is and ablated are measured once per layer and hook."""

    def __init__(self, loaded: LoadedModel | None, run: RunDirectory, settings: EvaluateSettings) -> None:
        self.loaded, self.run, self.settings = loaded, run, settings
        self.n_tokens = self.n_documents = 0
        self.warnings: list[str] = []
        self._plain: dict[bytes, tuple[LossSample, np.ndarray]] = {}
        self._ablated: dict[tuple[bytes, int, str], dict[str, np.ndarray]] = {}

    def row(self, item: OpenSae) -> dict[str, float]:
        config = item.sae.config
        if self.loaded is None:
            self.warnings.append("Losses were not measured: no model was named (moe-probe sae eval RUN --model MODEL).")
        elif config.experts is not None:
            self.warnings.append("SAEs of single experts are not spliced in: they cover the tokens of those experts only.")
        else:
            try:
                recovered = self._recovered(self.loaded, item)
                return {name: float(np.float64(recovered[name])) for name in _LOSS_COLUMNS}
            except MoeProbeError as error:
                self.warnings.append(f"Losses of {config.hook} were not measured: {error}")
        return dict.fromkeys(_LOSS_COLUMNS, float("nan"))

    def _recovered(self, loaded: LoadedModel, item: OpenSae) -> dict[str, float]:
        config, held_out = item.sae.config, item.held_out_documents.tobytes()
        if held_out not in self._plain:
            sample = loss_sample(self.run, item.held_out_documents, max_tokens=self.settings.tokens, seed=self.settings.seed)
            self._plain[held_out] = sample, losses(loaded, sample)
        sample, plain = self._plain[held_out]
        self.n_tokens, self.n_documents = sum(map(len, sample.ids)), len(sample.ids)
        key = (held_out, config.layer, config.hook)
        if key not in self._ablated:
            mean = _mean_activation(item.train)
            self._ablated[key] = ablated_losses(loaded, config.layer, config.hook, sample, mean=mean)
        return loss_recovered(
            loaded,
            item.sae,
            sample,
            {"plain": plain, **self._ablated[key]},
            seed=self.settings.seed,
        )


def _mean_activation(reader: ActivationReader) -> torch.Tensor:
    import torch

    total, n = torch.zeros(reader.d_in, dtype=torch.float64), 0
    for batch in reader.in_order():
        total += batch.values.reshape(len(batch.values), -1, reader.d_in).double().sum((0, 1))
        n += len(batch.rows)
    return (total / n).float()
