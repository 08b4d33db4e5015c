"""What SAE features are about: an SAE and a trace in, result tables out."""
