"""Experts and features compared: a run's routing and firings in, tables of matches and predictors out.

- `signals` and `routing_split` hold selections and tokens; `counts` chooses and scores pairs.
- `match_features` matches one SAE, beside `random_directions`; `feature_sets` and `feature_experts` look at several at once.
- `routing_prediction` predicts a layer's routing; `topic_units`, `words` and `topic_predictors` compare predictors of topics.
- `match` does all of it for a run.
"""
