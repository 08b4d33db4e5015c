"""SAE training: steps, batches, checkpoints."""
