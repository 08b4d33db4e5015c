"""Models of transformers: find their mixture-of-experts layers, record them, and change them while they run.

In: the name of a checkpoint. Out: sites and, per forward pass, records of each.

- `load` loads model and tokenizer, as `settings` say (which weights, and how they are loaded); `checkpoint` reads the files
  beside the weights, which `config_check` looks at first, and `diagnose` explains why one of the two failed. `placement` says
  on which devices the weights go, `quantization` how quantised checkpoints are loaded, `parallel` runs a model that is split
  over processes, and `weights` fetches weights wherever they are. `network` keeps the hub out of what nobody named.
- `outline` tokenizer and layers of a model that runs elsewhere, from its configuration alone.
- `discover` finds the mixture-of-experts layers; `adapters` reads the routing of each kind of block.
- `capture` records routing, router inputs, expert outputs and the residual stream while the model runs; `hooks` hooks that
  are removed after a ``with`` block.
- `check` proves that recording changes nothing and that what was recorded is what ran; estimates the size of a trace.
- `intervene` masks, zeroes, averages or steers experts; `splice` replaces activations at the sites of SAEs.
- `prefix` and `suffix` save work on repeated passes: layers below a change, and tokens that it leaves as they were.
- `identity` hashes of weights and of the tokenizer.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since most of them need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
