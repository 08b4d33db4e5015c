"""Features and experts of a word, a phrase, a regular expression, or the difference between two texts.

`find_units` takes a run and a `Query` and returns a `SearchResult`. ``occurrences.py`` finds the query's tokens in the corpus,
``ranking.py`` ranks features and experts by them, and ``find.py`` runs texts that are not in the corpus through the model.
"""

from __future__ import annotations

from moe_probe.features.search.find import Query, find_units
from moe_probe.features.search.occurrences import occurrences
from moe_probe.features.search.ranking import SearchResult

__all__ = ["Query", "SearchResult", "find_units", "occurrences"]
