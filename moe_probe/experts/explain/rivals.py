"""What else than the topic may explain an expert: the contexts that usage is compared with, each under all its names."""

from __future__ import annotations

from typing import NamedTuple


class Rival(NamedTuple):
    """One context: what it is called where it is measured, its result, the suffix of its columns, its name in sentences."""

    given: str
    result: str
    column: str
    name: str


RIVALS = (
    Rival("token", "beyond_vocabulary", "words", "words"),
    Rival("previous token", "beyond_previous_token", "previous", "previous tokens"),
    Rival("token pair", "beyond_token_pairs", "pairs", "pairs of tokens"),
)
#: Result of every context.
CONTEXTS = {rival.given: rival.result for rival in RIVALS}
