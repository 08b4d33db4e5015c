"""Documents and a model, or a file of routing, in; a sealed trace out."""
