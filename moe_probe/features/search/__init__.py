"""Features and experts of a word, a phrase or a pair of texts."""
