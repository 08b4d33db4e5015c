"""Models and traces whose answers are known: for the tests of this package, and for yours.

In: sizes, planted effects and a seed. Out: models, traces, result tables.

- `tiny_models` random models of every mixture-of-experts family (`tiny_moe`).
- `planted` routing with planted topic, token, position and register experts; `traces` writes it as a trace, or one without
  effects.
- `sources` usage of documents from few sources, with habits that all documents of a source share.
- `activations` a trace with activations of planted features.
- `results` the result tables of a whole run, drawn at random.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since some of them need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
