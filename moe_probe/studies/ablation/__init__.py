"""What happens to the loss on each topic when an expert, a group of experts or an SAE feature is knocked out.

In come a run with its model and the units to knock out; out comes ``ablation``, one row per unit and topic.

- `ablate_run` does all of it for a run; `stage` is the stage ``ablate``; `settings` how units are knocked out, and how many
  tokens.
- `units` which units: those of the verdicts, or those named; `controls` units of the same kind and load to compare them
  with.
- `baseline` held-out documents with their losses on the unchanged model; `ablator` the losses without a unit;
  `feature_removal` subtracts features from an activation.
- `rises` the rise of the loss: on the unit's topic, compared with controls and with other topics; what is confirmed.

The names of this face are in ``__init__.pyi``; they are loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
