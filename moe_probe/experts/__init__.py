"""What the experts of a model specialise in, from a trace alone: no model is needed.

A trace comes in; result tables come out. `moe_probe.studies.analyses` runs the analyses in order.

- `usage` load and balance per layer, load and gate mass per expert, co-activation.
- `topics` the effect of every expert and topic, and of other label columns; it rests on `topic_tests` (effect, interval,
  p-values, replication of any unit) and `topic_groups` (usage by group of documents, label columns, halves).
- `strata` the label column within which documents are permuted, the same in all stages of a run.
- `samples` documents of a large corpus that costly analyses take.
- `decoding` topics decoded from a layer's usage, cross-validated over groups of documents.
- `explain` explanations that rival the topic: words, positions, kinds of token.
- `clusters` what goes together: groups of experts, combinations, similarity, clusters of experts, documents and tokens.
- `published` metrics of other work; `contexts` the text around an expert's tokens of highest gate weight.
- `collapse` layers whose router has collapsed.
- `duplicates` passages that documents of several groups share.
"""
