"""Feature splitting: how the features of a wider SAE divide those of a narrower one, and whether along human subjects.

In come a run's SAEs of two widths or more, out go result tables.

- `build` makes the whole tree (`build_tree`); `stage` is the stage ``tree``; `settings` its settings in a run, `options`
  those of the tree and of depth-first training; `captions` the captions and sources of the tables.
- `dictionary` an SAE or a nested part of one, encoded when its firings are asked for; `ladders` the SAEs of a layer from
  narrow to wide; `edges` the parent of every feature, by decoder direction and by
  tokens; `stitching` which latents of a wider SAE add something new.
- `subjects` firing rates in groups of documents, with topics and subtopics; `subject_tests` tests the trees against these;
  `kinds` the kind of a node (one subject, by its parts, several, none); `siblings` whether siblings share a topic and
  divide it by subtopics; `same_label` chance that two features' firings carry one label; `nulls` the two nulls and their
  p-values; `power` power of the test of a node; `distance` distance in the tree beside distance in the corpus's taxonomy.
- `concepts` features per topic, and absorption; `examples` nodes to read; `annotations` topic and label of every feature.
- `walk` walks down the tree from a feature or a word.
- `depth_comparison` depth-first compared with breadth-first: `depth_root` the coarse feature it starts from,
  `small_dictionaries` trained only where a feature fires, `depth_judge` labels, topics and counts for both.

The names of this face are in ``__init__.pyi``; they are loaded when first used, so that settings cost no scipy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
