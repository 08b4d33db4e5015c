"""Is there an expert for the topic? The rules, and the evidence that features and causes add."""
