"""SAE folders on disk: our own (SAELens) and those of other libraries."""
