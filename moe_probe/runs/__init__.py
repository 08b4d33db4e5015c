"""Runs: settings in; a run directory with trace, results, SAEs and report out.

- `config` the settings of all rooms, nested in one file (``run.yaml``).
- `progress` what was done in a run, and what comes next.
- `template` a settings file with every setting explained, for ``moe-probe new``.
- `stages` the order of the stages, each defined by its room; `pipeline` runs those whose inputs or settings changed.
- `ledger` which stages are done, with which settings and files (``logs/stages.json``); `own_files` what
  ``run --force`` removes.
- `run` a run directory opened as a `Run`: trace, results, SAEs, verdicts, cards and report.
"""
