"""Readers of what a user brings: corpora, records of routing, answers of servers."""

from __future__ import annotations

from attacks import inputs_corpus, inputs_counts, inputs_records, inputs_servers
from attacks.readers import Reader

READERS: tuple[Reader, ...] = (
    *inputs_corpus.READERS,
    *inputs_records.READERS,
    *inputs_counts.READERS,
    *inputs_servers.READERS,
)
