"""Knock-outs: what the loss of a topic does without an expert or a feature."""
