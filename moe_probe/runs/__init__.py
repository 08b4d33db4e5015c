"""Runs: the run directory in one object, and the stages of a run in their order.

In come settings (`config`, the settings of all rooms nested in one file, ``run.yaml``); out comes a run directory. `stages`
is the one place that knows the order of the stages, each defined by its room; `pipeline` does those whose inputs or settings
changed, by the notes of `ledger`. `run` opens a run directory as a `Run`: trace, results, SAEs, verdicts, cards and report.
"""
