"""SAE training, seeded and resumable.

In: a run or batches of activations. Out: trained SAEs, saved below RUN/sae with a record of their training.

- `layers` trains the SAEs of a run that a `request` names; `record` reads what their folders record of it.
- `train` trains several SAEs in one pass; `steps` is one SAE's optimiser and step; `checkpoint` saves the state.
"""
