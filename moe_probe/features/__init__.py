"""What SAE features respond to: a run's SAEs and its trace in, result tables out.

- `firing` encodes tokens; `run_saes` opens the SAEs of a run one at a time and keeps their firings.
- `evaluate` measures SAEs: `quality` has variance, sparsity and redundancy, `spliced_loss` the loss with reconstructions.
- `label` labels their features: `describe` joins the labels of one SAE (`labels`) with its topics (`topic_enrichment`).
- `matching` matches experts with features; `search` finds both by a word; `tree` shows how features split.

The names of this face are in ``__init__.pyi``; they are loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
