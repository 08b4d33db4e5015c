"""Labels of features: by rules, by a language model, by a person."""
