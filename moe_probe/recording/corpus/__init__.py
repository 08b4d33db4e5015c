"""Labelled documents: read from files, checked row by row, split by group, hashed.

A corpus is streamed: nothing here holds more than one document's text at a time.
"""

from moe_probe.recording.corpus.document import Columns, Document, LabelSpan
from moe_probe.recording.corpus.splits import assign_halves, stratified_split
from moe_probe.recording.corpus.stream import Corpus, CorpusSummary

__all__ = ["Columns", "Corpus", "CorpusSummary", "Document", "LabelSpan", "assign_halves", "stratified_split"]
