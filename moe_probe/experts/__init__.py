"""What single experts and groups of experts are used for: a trace in, result tables out."""
