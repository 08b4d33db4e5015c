"""Models of transformers: find their mixture-of-experts layers, record them, and change them while they run.

In: the name of a checkpoint (`load`). Out: sites (`discover`) and, per forward pass, records of each (`capture`).

- `adapters` reads the routing of each kind of block; `check` proves that what is recorded is what ran.
- `intervene` ablates and steers experts, `splice` replaces activations; `prefix` and `suffix` save work on repeated passes.
- `identity` hashes weights and tokenizer; `diagnose` explains why a model cannot be read.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since most of them need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
