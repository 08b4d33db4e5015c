from .activations import ActivationReader, Batch, select
from .architectures.base import Sae, Sparse
from .architectures.matryoshka import nested_widths
from .architectures.registry import ARCHITECTURES, make_sae
from .config import SaeConfig, TrainOptions
from .formats.io import load_sae, read_trained_config, read_training, save_sae
from .held_out import held_out_documents
from .load_into import LoadSettings, load_into
from .settings import SaeSettings
from .store import readers, saes_of
from .training.layers import train_layers
from .training.record import TrainingRecord
from .training.request import TrainRequest
from .training.steps import Progress
from .training.train import Trained, train_on, train_saes

__all__ = [
    "ARCHITECTURES",
    "ActivationReader",
    "Batch",
    "LoadSettings",
    "Progress",
    "Sae",
    "SaeConfig",
    "SaeSettings",
    "Sparse",
    "TrainOptions",
    "TrainRequest",
    "Trained",
    "TrainingRecord",
    "held_out_documents",
    "load_into",
    "load_sae",
    "make_sae",
    "nested_widths",
    "read_trained_config",
    "read_training",
    "readers",
    "saes_of",
    "save_sae",
    "select",
    "train_layers",
    "train_on",
    "train_saes",
]
