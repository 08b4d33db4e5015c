"""Documents and a model, or a file of routing, in; a sealed trace out.

`corpus` reads labelled documents, `collect` runs a model over them, `importers` read routing that another program recorded,
and `trace` is what all of them write and every later room reads. `rundir` is a trace with the folders of a run around it,
`run_model` loads the model of a run again, `settings` are the options of corpus and collection. Names are loaded when they
are first used: collecting needs torch, reading a trace does not.
"""
