"""What happens to the loss on each topic when an expert, a group of experts or an SAE feature is knocked out.

In come a run with its model and the units to knock out; out comes ``ablation``, one row per unit and topic. `units` says which
units, `controls` draws units of the same load to compare them with, `baseline` has the documents with their losses, `ablator`
measures losses without a unit (`feature_removal` for features), `rises` compares them, and `ablate_run` does all of it for a run.

The names of this face are in ``__init__.pyi``; they are loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
