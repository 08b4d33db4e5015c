"""Models and traces whose answers are known: for the tests of this package, and for yours.

- `tiny_models` builds random models of every mixture-of-experts family (`tiny_moe`).
- `planted` draws routing with planted experts, `traces` writes it; `activations` adds activations with planted features.
- `results` draws the result tables of a whole run.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since some of them need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
