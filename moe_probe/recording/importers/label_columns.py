"""Names of the columns of a table of labels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelColumns:
    """Which column of a table of documents has what; all but the topic may be missing.

    Attributes
    ----------
    document, topic, subtopic, group, split : str
        Name of the document, and its labels.
    tokens : str
        Number of tokens of the document.
    """

    document: str = "document"
    topic: str = "topic"
    subtopic: str = "subtopic"
    group: str = "group"
    split: str = "split"
    tokens: str = "tokens"
