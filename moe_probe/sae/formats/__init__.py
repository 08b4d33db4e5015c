"""SAE folders on disk: written as SAELens folders, read from three libraries.

In: a folder. Out: an `Sae` in the form of this package; and back.

- `io` saves and loads: it recognises the library, and reads the record of a training.
- `saelens`, `sparsify`, `dictionaries` (dictionary_learning) convert the folders of each library.
- `foreign` their shared form, and the checks of configurations; `tensors` the checks of weights.
"""
