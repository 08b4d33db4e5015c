"""Documents and a model, or a file of routing, in; a sealed trace out.

- `corpus` reads labelled documents; `collect` runs a model over them; `serving` collects from a vLLM or SGLang server;
  `importers` read routing that another program recorded.
- `trace` the sealed directory that all of them write and every later room reads.
- `rundir` a run directory as all rooms see it: a trace with the folders of its results and SAEs.
- `run_model` the model of a run, loaded again as it was for the trace.
- `settings` the options of corpus and collection: columns, splits, shards, what is kept.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since collecting needs torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
