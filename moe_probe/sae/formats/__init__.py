"""SAE folders on disk: written as SAELens folders, read from three libraries.

In: a folder. Out: an `Sae` in the form of this package (`io`); and back.

- `saelens`, `sparsify` and `dictionaries` (dictionary_learning) convert the folders of each library.
- `foreign` has their shared form and the checks of configurations; `tensors` the checks of weights.
"""
