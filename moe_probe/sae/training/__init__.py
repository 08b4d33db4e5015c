"""SAE training, seeded and resumable.

In: a run or batches of activations. Out: trained SAEs, saved below RUN/sae with a record of their training.

- `request` what to train in a run; `layers` trains it layer by layer, all widths of a layer in one pass;
  `ray_layers` lets Ray workers do so.
- `train` trains several SAEs on one stream of activations; `steps` schedule and step of one SAE; `dead` its dead latents;
  `update` applies the gradients, on a GPU by `kernels`.
- `checkpoint` the state on disk; `record` what a folder records of its training.
"""
