"""Helpers of the tests: corpora, traces, runs and a model whose truth is known."""
