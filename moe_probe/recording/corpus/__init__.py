"""Labelled documents: read from files, checked row by row, split by group, hashed.

`sources` finds the files, `readers` reads their rows, `document` turns a row into a `Document`, and `stream` checks and
hashes the whole as a `Corpus`; `splits` divides documents by group. A corpus is streamed: nothing here keeps more than
one document's text at a time.
"""

from moe_probe.recording.corpus.document import Columns, Document, LabelSpan
from moe_probe.recording.corpus.splits import assign_halves, stratified_split
from moe_probe.recording.corpus.stream import Corpus, CorpusSummary

__all__ = ["Columns", "Corpus", "CorpusSummary", "Document", "LabelSpan", "assign_halves", "stratified_split"]
