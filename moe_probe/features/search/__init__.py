"""Features and experts of a word, a phrase, a regular expression, or the difference between two texts.

A run and a `Query` come in; a `SearchResult` comes out.

- `find` the search itself (`find_units`): in the run's corpus, or in texts that it runs through the model.
- `occurrences` the tokens of a trace that the query covers.
- `ranking` features and experts ranked by how much they belong to these tokens.
"""

from __future__ import annotations

from moe_probe.features.search.find import Query, find_units
from moe_probe.features.search.occurrences import occurrences
from moe_probe.features.search.ranking import SearchResult

__all__ = ["Query", "SearchResult", "find_units", "occurrences"]
