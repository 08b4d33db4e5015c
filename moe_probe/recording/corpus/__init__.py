"""Labelled documents: read from files, checked row by row, split by group, hashed.

- `sources` what a corpus is made of: a file, files of a folder or glob, folders of text, a data set of `datasets`.
- `readers` the rows of one file: JSON, CSV, Parquet, Arrow; `parquet` Parquet whose sizes are checked first; `document` a row
  as a `Document` with labels, group and spans.
- `stream` the whole as a `Corpus`: checked (repeated ids, a group with two topics), hashed, then iterated.
- `splits` train and held-out by group, stratified by topic.

A corpus is streamed: nothing here keeps more than one document's text at a time.
"""

from moe_probe.recording.corpus.document import Columns, Document, LabelSpan
from moe_probe.recording.corpus.splits import assign_halves, stratified_split
from moe_probe.recording.corpus.stream import Corpus, CorpusSummary

__all__ = ["Columns", "Corpus", "CorpusSummary", "Document", "LabelSpan", "assign_halves", "stratified_split"]
