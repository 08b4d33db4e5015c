"""Attacks on the program from outside, each a module with ``attack(options) -> Table``.

- `common`: options, tables, runs of the program
"""
