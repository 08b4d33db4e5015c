"""The SAE architectures: encoders, decoders and their losses."""
