"""Sparse autoencoders: an unsupervised projection of activations into a wider space of features."""

from __future__ import annotations

from moe_probe.core.sites import HOOKS
from moe_probe.sae.activations import ActivationReader
from moe_probe.sae.architectures.base import Sae, Sparse
from moe_probe.sae.architectures.registry import ARCHITECTURES, make_sae
from moe_probe.sae.config import SaeConfig
from moe_probe.sae.formats.io import load_sae, read_trained_config, read_training, save_sae
from moe_probe.sae.training.steps import Progress, TrainOptions
from moe_probe.sae.training.train import Trained, train_on, train_saes

__all__ = [
    "ARCHITECTURES",
    "HOOKS",
    "ActivationReader",
    "Progress",
    "Sae",
    "SaeConfig",
    "Sparse",
    "TrainOptions",
    "Trained",
    "load_sae",
    "make_sae",
    "read_trained_config",
    "read_training",
    "save_sae",
    "train_on",
    "train_saes",
]
