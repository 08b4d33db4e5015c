"""Experts and features compared: a run's routing and firings in, tables of matches and predictors out.

- `match` does all of it for a run; `stage` is the stage ``match``.
- `signals` selections, tokens and firings as sparse arrays over the same tokens; `routing_split` the tokens that pairs are
  chosen on, and those that they are scored on; `co_counts` counts the tokens of pairs block by block, with the compiled loops
  of `kernels`; `counts` chooses and scores pairs of binary signals.
- `match_features` pairs of experts and features of one SAE, beside baselines; `random_directions` dictionaries of random
  directions as a baseline; `feature_sets` small sets of features that predict an expert together.
- `feature_experts` the experts that select a feature's tokens, and their effective number.
- `routing_prediction` how much of a layer's routing features predict: recall and bits.
- `topic_predictors` the unit that predicts each topic best (expert, group, feature, set, tokens); `topic_units` chooses the
  units and measures their AUROC; `words` single tokens and sets of tokens, compared with features.
"""
