"""Sparse autoencoders (SAEs): an unsupervised projection of activations into a wider space of sparse latents.

In: the activations of a trace (`activations`). Out: SAE folders below RUN/sae that SAELens reads too.

- `config` says what an SAE is; `architectures` has one file per architecture.
- `training` trains them; `held_out` says on which documents they are not trained.
- `formats` reads and writes folders of SAELens, sparsify and dictionary_learning.
- `store` names the SAEs of a run and opens them.

Names are imported when they are first used: `SaeConfig` and `TrainOptions` need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_probe.sae.activations import ActivationReader
    from moe_probe.sae.architectures.base import Sae, Sparse
    from moe_probe.sae.architectures.registry import ARCHITECTURES, make_sae
    from moe_probe.sae.config import SaeConfig, TrainOptions
    from moe_probe.sae.formats.io import load_sae, read_trained_config, read_training, save_sae
    from moe_probe.sae.training.record import TrainingRecord
    from moe_probe.sae.training.steps import Progress
    from moe_probe.sae.training.train import Trained, train_on, train_saes

_PUBLIC = {
    "activations": ("ActivationReader",),
    "architectures.base": ("Sae", "Sparse"),
    "architectures.registry": ("ARCHITECTURES", "make_sae"),
    "config": ("SaeConfig", "TrainOptions"),
    "formats.io": ("load_sae", "read_trained_config", "read_training", "save_sae"),
    "training.record": ("TrainingRecord",),
    "training.steps": ("Progress",),
    "training.train": ("Trained", "train_on", "train_saes"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "ARCHITECTURES",
    "ActivationReader",
    "Progress",
    "Sae",
    "SaeConfig",
    "Sparse",
    "TrainOptions",
    "Trained",
    "TrainingRecord",
    "load_sae",
    "make_sae",
    "read_trained_config",
    "read_training",
    "save_sae",
    "train_on",
    "train_saes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
