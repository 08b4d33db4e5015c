"""Labels of features: firings and the context of tokens in, a label with its score per feature out.

- `context` the word, token, word before, kind, position and topic of every token: what a rule can refer to.
- `rule_labels` chooses a rule per feature on training tokens and scores it on held-out tokens, and puts it into words;
  `rules` has the rules, what they predict, and the score (precision, recall, F1 ...).
- `excerpts` text around firings of all strengths, and around tokens without.
- `llm` explanations and detection scores by a language model; `llm_labels` for the features of a run, with an estimate of
  cost; `endpoint` the requests, their retries and the key; `answer_cache` answers kept in a file.
- `human_labels` a person's labels, read from a file; they replace any other.
"""
