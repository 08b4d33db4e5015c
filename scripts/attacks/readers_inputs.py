"""Readers of what a user brings: corpora, records of routing, answers of servers."""

from __future__ import annotations

from attacks.readers import Reader

READERS: tuple[Reader, ...] = ()
