"""Work spread over the processes of Ray, which survives the loss of any of them.

In: a `Work` and its tasks, each with a place of its own on a file system that all machines share. Out: their results, in order.

- `settings` the options: how many workers, with which GPUs, on which cluster.
- `cluster` starts Ray on this machine or connects to a cluster; `plan` what fits on its nodes, and what is refused.
- `work` what a worker does: the base class, tasks, and outcomes that travel between processes.
- `host` the actor around it in the worker's process; `lease` lets a task have one owner at a time, also where a worker was
  cut off rather than killed.
- `pool` hands tasks to workers, and replaces those that are lost.

Only `cluster`, `host` and `pool` import Ray, and only when they are used.
"""
