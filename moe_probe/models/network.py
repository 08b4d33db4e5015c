"""Whether the hub may be asked: only for a repository that the caller named, never because a file says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hub_access(*, allowed: bool) -> Iterator[None]:
    """Allow or refuse every request to the hub inside a ``with`` block; local copies are read either way.

    A checkpoint on disk can name other repositories (a tokenizer's, an adapter's base model, a kernel): transformers would
    ask the hub for them. The switch is that of the variable ``HF_HUB_OFFLINE``, which huggingface_hub looks at before each
    request; a user's own setting of that variable stays.

    Parameters
    ----------
    allowed : bool

    Yields
    ------
    None
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not allowed
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
