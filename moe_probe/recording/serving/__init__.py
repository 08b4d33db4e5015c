"""A corpus and a server that runs the model, in; a sealed trace out: how models are recorded that fit no machine of yours.

- `settings` the options: address, concurrency, what is generated; `client` requests with retries and bounded answers.
- `engines` what vLLM and SGLang are asked, and the fields of their answers.
- `asking` a server that is tried before anything else is sent; `workers` threads that ask side by side.
- `layers` which of the columns that a server returns are which MoE layers, and whether they are routing.
- `losses` documents that stay without routing: how many are borne.
- `collect` sends the corpus, several requests at a time, and appends shard after shard to the trace.

The names of this face are in ``__init__.pyi``; they are loaded when first used, so that the command line needs no numpy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
