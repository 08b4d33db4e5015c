"""Sparse autoencoders (SAEs): an unsupervised projection of activations into a wider space of sparse latents.

In: the activations of a trace. Out: SAE folders below RUN/sae that SAELens reads too.

- `config` what an SAE is, and options of its training; `settings` which SAEs a run trains; `stage` the stage ``sae``.
- `activations` reads activations of a trace in batches, shuffled by seed; `prefetch` does so while the steps run;
  `held_out` the documents on which SAEs are not trained.
- `architectures` one file per architecture; `training` trains them, resumable.
- `formats` reads and writes folders of SAELens, sparsify and dictionary_learning; `load_into` adds an SAE trained elsewhere
  to a run.
- `store` the SAEs of a run: names of their folders, and the activations that each reads.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since most of them need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
