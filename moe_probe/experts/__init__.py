"""What the experts of a model specialise in, from a trace alone: no model is needed.

A trace comes in; result tables come out. `usage` measures load, balance and co-activation, `topics` tests every expert and
topic, `explain` measures explanations that rival the topic, `clusters` finds what goes together, `published` has the
metrics of other work, `contexts` shows the text that experts take, and `duplicates` finds documents that share text.
`moe_probe.studies.analyses` runs them in order.
"""
