"""Sparse autoencoders (SAEs): an unsupervised projection of activations into a wider space of sparse latents.

In: the activations of a trace (`activations`). Out: SAE folders below RUN/sae that SAELens reads too.

- `config` says what an SAE is; `architectures` has one file per architecture.
- `training` trains them; `held_out` says on which documents they are not trained.
- `formats` reads and writes folders of SAELens, sparsify and dictionary_learning.
- `store` names the SAEs of a run and opens their activations; `load_into` adds an SAE trained elsewhere.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since most of them need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
