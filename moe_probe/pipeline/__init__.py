"""Everything from a model and a corpus to a report, stage by stage, each skipped when nothing changed.

`config` defines the settings, `run` the way through the stages, `analyze` the table of analyses, `ledger`
what was done with which inputs. Nothing is imported here: the settings alone serve ``moe-probe --help``.
"""
