"""The sections of the report: results by name in; a `Section` with title, finding, blocks and limits out (or None).

`moe_probe.report.compose` has their order. A caption under "how" comes from the analysis that made the table
(`Result.caption`).

- `opening` what the page begins with: the first of the short `answers`, then `verdicts`, one row per topic.
  `claims` passages and groups of the units that verdicts name; `unit_names` their names, with links.
- `alerts` what to know before believing the rest, and the checks that raised nothing; `model_card` the run card and the
  data files.
- `rivals` what explains routing instead of topics: words, positions, kinds of token, other label columns.
- `topics` experts and topics, a map per topic; `layers` balance, information and decoding per layer, and pairs of experts.
- `experts` cards of experts; `related` what is nearest to one; `together` combinations of experts, and metrics of published work.
- `maps` maps and clusters of experts, documents and tokens.
- `features` SAEs (how faithful), features (labels, topics) and cards of features.
- `units` experts beside features: carriers (best predictors of a topic), matches, predicted routing.
- `splitting` feature splitting: `subjects` answers "along human lines?" with its nulls, `walkable` has trees to walk down.
- `knockouts` the change of the loss without a unit; `costs` cost, once or on every output.
- `glossary` the terms; `sources` methods in formulas, sources, BibTeX.
"""
