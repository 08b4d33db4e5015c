"""What collecting, training SAEs, labelling and matching cost, compared with what training the model cost.

In come a run's folders and the sizes of its model; out come operations, seconds and bytes per step.

- `measure` what the stages of a run took; `project` the same steps for any model, and how the fraction moves with its size.
- `presets` sizes of published models, with sources; `tables` writes ``cost.json``, ``costs`` and ``cost_projected``.
- `stage` the stage ``cost``.

The names of this face are in ``__init__.pyi``; they are loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
