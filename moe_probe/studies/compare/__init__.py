"""Comparisons of runs that differ in model, checkpoint, corpus, label, seed or SAE width.

In come run directories, or `ComparedRun` objects (a run under one label); out comes a `Comparison`: tables of differences with
intervals. `opening` opens runs, `pairing` finds the documents that two runs share and resamples them, and `comparison` asks all
questions: `facts` (what differs in the settings), `verdicts`, `topics` (lifts), `layers`, `labels`, `saes`, and `alignment`
(which expert is which). `differences` has the intervals, `summary` the sentences.

The names of this face are in ``__init__.pyi``; they are loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
