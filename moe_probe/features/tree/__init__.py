"""Feature splitting: how the features of a wider SAE divide those of a narrower one, and whether along human subjects.

In come a run's SAEs of two widths or more, out go result tables; the modules in the way of the data:

- `ladders` opens the SAEs of each layer from narrow to wide; `edges` finds every feature's parent; `stitching` asks what is new.
- `subjects` gives firing rates in groups of documents; `same_label`, `nulls`, `siblings`, `power` and `distance` are the
  statistics of a tree against topics; `subject_tests` runs them, and `kinds` names what they find of a node.
- `concepts` counts features per topic, `examples` chooses nodes to read, `annotations` has labels, `captions` the texts.
- `build` puts all of it together (`build_tree`); `walk` reads a tree that was built; `stage` is its place in a run.
- `depth_root`, `small_dictionaries`, `depth_judge`, then `depth_comparison`: dictionaries trained only where a feature fires.

The names of this face are in ``__init__.pyi``; they are loaded when first used, so that settings cost no scipy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
