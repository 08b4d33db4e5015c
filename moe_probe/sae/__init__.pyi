from .activations import ActivationReader
from .architectures.base import Sae, Sparse
from .architectures.registry import ARCHITECTURES, make_sae
from .config import SaeConfig, TrainOptions
from .formats.io import load_sae, read_trained_config, read_training, save_sae
from .settings import SaeSettings
from .training.record import TrainingRecord
from .training.steps import Progress
from .training.train import Trained, train_on, train_saes

__all__ = [
    "ARCHITECTURES",
    "ActivationReader",
    "Progress",
    "Sae",
    "SaeConfig",
    "SaeSettings",
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
