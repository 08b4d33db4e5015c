"""What all rooms share and no model is needed for: plain data, arrays, text and files.

- `errors` the exceptions, their exit codes, and "did you mean"; `extras` optional packages and how to install them.
- `settings` the base of all settings: unknown names and values out of range are refused; `stage` the base of a stage of a
  run.
- `schema` the manifest of a trace, and whether weights are those of the trace; `evidence` what a trace can support; `sites`
  activation sites and their names; `units` references to experts, groups and features, such as ``5:13`` or ``5:3+7``.
- `routing` counts of selections, load, co-activation, the mark of a dropped token; `flops` floating-point operations.
- `stats` permutation tests, intervals, effect sizes on plain arrays.
- `text` text that is safe to show: control characters, clipping, terminal width, enumerations, numbers and missing values.
- `pieces` tokens as text: characters split over several tokens are joined; `html` escaped parts of HTML for notebooks.
- `textfiles` any text file that users bring: encodings, compression, JSON, CSV, globs.
- `links` links out of a folder that may be a stranger's are refused.
- `untrusted` files that someone else may have written (JSON, safetensors), `untrusted_tables` the same for Parquet: sizes, types
  and shapes are checked before memory is taken.
- `files` files whole or absent, full disks and missing permissions, checksums; `own_files` which files of a folder the program
  wrote, the only ones that it removes; `lock` one writer at a time for a run or trace, `holder` who it is.
- `progress` bars and durations, `interrupt` Ctrl-C; `overlap` threads that prepare what comes next and put away what is done.
- `http` requests to a server that the user named: checked addresses, retries, answers of bounded size; `deadline` exchanges of
  bounded time.
- `workers` work shared out among processes of Ray that may be lost.
- `results` result tables with parameters, caption, warnings and sources, and the results of a run by name; `result_files` their
  two files, read and checked; `publication` files that become visible together; `generation` the results of one command, saved
  together and refused where they are mixed.
"""
