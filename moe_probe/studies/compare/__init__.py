"""Comparisons of runs that differ in model, checkpoint, corpus, label, seed or SAE width.

In come run directories, or `ComparedRun` objects; out comes a `Comparison`: tables of differences with intervals.

- `opening` opens run directories under their labels; `stored` checks their results; `compared_run` a run under one label, and
  the documents, tokens and layers that two runs share; `settings` resamples, permutations, alpha, seed.
- `answer` the first lines: which run is better balanced, which more specialised, the course of many.
- `comparison` makes, keeps and reads all tables; `summary` all differences in one table, and what stands out in sentences.
- `pairing` groups of documents that two runs share, paired and resampled; `differences` differences with intervals.
- `facts` what differs in model, corpus and settings; `verdicts` verdicts side by side, and changes; `topics` lifts of best
  experts; `layers` balance and information; `labels` which of two label columns an expert follows; `saes` SAEs of rising
  width, or of runs.
- `alignment` which expert of one model is which of another.

The names of this face are in ``__init__.pyi``; they are loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
