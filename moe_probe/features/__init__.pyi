from .describe import FeatureTables, LabelSettings, describe_features
from .evaluate import EvaluateSettings
from .firing import Firings, SplitFirings, fire
from .run_saes import OpenSae, RunSaes
from .spliced_loss import LossSample, Splice, Suffix, first_losses, loss_sample, losses, site_of

__all__ = [
    "EvaluateSettings",
    "FeatureTables",
    "Firings",
    "LabelSettings",
    "LossSample",
    "OpenSae",
    "RunSaes",
    "Splice",
    "SplitFirings",
    "Suffix",
    "describe_features",
    "fire",
    "first_losses",
    "loss_sample",
    "losses",
    "site_of",
]
