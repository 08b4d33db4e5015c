"""Labels of features: firings and the context of tokens in, a label with its score per feature out.

- `context` divides tokens by word, kind, position and topic; `rules` and `rule_labels` choose the rule of each feature.
- `excerpts` draws text around firings; `llm` asks a language model (`endpoint`, `answer_cache`), `llm_labels` for a run.
- `human_labels` reads a person's labels.
"""
