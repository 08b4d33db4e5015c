"""Models: find the places that route, watch them, and prove that what was seen is what ran.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since most of them need torch.

The names of this face are in ``__init__.pyi``; they are loaded when first used, since most of them need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
