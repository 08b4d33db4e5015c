"""What SAE features respond to: a run's SAEs and its trace in, result tables out.

- `run_saes` opens the SAEs of a run one at a time and keeps their firings; `firing` encodes tokens into firings, `firing_cache`
  keeps those that fit in memory.
- `evaluate` measures SAEs: `quality` has variance unexplained, dead and dense latents, redundancy; `spliced_loss`
  next-token losses of held-out documents with activations replaced.
- `label` labels features by rules: `describe` joins `labels` (rules, a language model, a person) of one SAE with
  `topic_enrichment`: topics in whose documents a feature fires more.
- `matching` experts beside features; `search` features and experts of a word, phrase or text; `tree` feature splitting.
- `stage` the stage ``features`` of a run: quality, labels, topics.

The names of this face are in ``__init__.pyi``; they are loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
