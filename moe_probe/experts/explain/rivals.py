"""The contexts that rival the topic as explanations of expert usage, each under all its names: one table for all rooms."""

from __future__ import annotations

from typing import NamedTuple


class Rival(NamedTuple):
    """One context that may explain usage instead of the topic.

    Attributes
    ----------
    given : str
        Name of the context as an option of `expected_usage`.
    result : str
        Name of the result that tests usage against it.
    column : str
        Suffix of its columns in other tables (``log2_beyond_<column>``).
    name : str
        Its name in sentences, in the plural.
    """

    given: str
    result: str
    column: str
    name: str


RIVALS = (
    Rival("token", "beyond_vocabulary", "words", "words"),
    Rival("previous token", "beyond_previous_token", "previous", "previous tokens"),
    Rival("token pair", "beyond_token_pairs", "pairs", "pairs of tokens"),
)
#: Name of the result by context.
CONTEXTS = {rival.given: rival.result for rival in RIVALS}
