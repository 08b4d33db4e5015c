"""Attacks on the program from outside, each a module with ``attack(options) -> Table``.

- `common`: options, tables, runs of the program
- `fuzz`: damaged input for every reader; `mutate`, `mutate_values`, `mutate_tensors`,
  `mutate_tables` damage it; `readers` what a reader is,
  `readers_runs`, `readers_traces`, `readers_signed` and `readers_inputs` which there are (`inputs_corpus`,
  `inputs_records`, `inputs_counts` and `inputs_servers` the inputs of the latter)
- `kills`: kill -9 at any moment; `kill_places` what is killed and how it is continued, `forks` the processes
- `hostile`: folders of strangers, for every command
- `resume_damage`: damage between an interruption and --resume; `unfinished` the traces, `damage` what is done to them
- `writers`: two commands that write to one folder at once
"""
