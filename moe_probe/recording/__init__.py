"""Documents and a model, or a file of routing, in; a sealed trace out.

`corpus` reads labelled documents, `collect` runs a model over them, `importers` read routing that another program recorded,
and `trace` is what all of them write and every later room reads. `rundir` is a trace with the folders of a run around it,
`run_model` loads the model of a run again, `settings` are the options of corpus and collection.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since collecting needs torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
