"""Sparse autoencoders: an unsupervised projection of activations into a wider space of features."""

from __future__ import annotations

from moe_probe.sae.base import Sae, Sparse
from moe_probe.sae.config import HOOKS, SaeConfig
from moe_probe.sae.registry import ARCHITECTURES, make_sae
from moe_probe.sae.train import Progress, TrainOptions, train_saes

__all__ = ["ARCHITECTURES", "HOOKS", "Progress", "Sae", "SaeConfig", "Sparse", "TrainOptions", "make_sae", "train_saes"]
