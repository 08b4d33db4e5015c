"""Traces from routing that somebody else recorded: files or arrays in, a sealed trace out.

One file per format:

- `table` the interchange table: `tablefile` its files and columns, `columns` their values as arrays.
- `responses` answers of vLLM and SGLang: `answers` finds the fields of each version, `routed` decodes the arrays of
  experts, `sequence` joins those of prompt and answer.
- `fingerprints` the files of GPT-OSS-MoE-ExpertFingerprinting.
- `recording_files` what engines record, a file each: `imatrix` importance matrices of llama.cpp (`gguf` reads their
  container), `sglang_distribution` and `sglang_tokens` SGLang's expert-distribution recorder (`torch_file` reads files of
  ``torch.save``); `recordings` counts and labels of such files.
- `arrays` routing token by token in NumPy or safetensors arrays; `usage` counts or fractions per document, whose tokens
  `fractions` recovers, and the long tables and sums by topic of `usage_table`; `arrayfile` opens arrays safely, `labels`
  reads the table of documents beside them.

Shared by all, in the order of the data; your own arrays go to `records` directly:

- `options` the settings of an import (layers, numbers of experts, tokenizer ...); `label_columns` what the columns of labels
  are called; `jsonrows` objects of JSON files and
  their labels.
- `token_record` one document as it was recorded, with the rows of its file for messages; `tokens` text of token ids.
- `survey` the first pass: finds what is wrong (row, reason), and what is constant, as warm-up requests and dense layers
  are.
- `plan` decides which layers and tokens are kept, and how many experts a layer has; refuses or warns of constant tokens.
- `records` ends every import of tokens: surveys, plans, writes.

Of records that have counts only:

- `usage_block` some documents with their counts.
- `usage_survey` the first pass: finds what is wrong (document, layer); `usage_fit` the tokens and experts per token behind
  the counts.
- `usage_records` ends every import of counts: surveys, writes.

The names of this face are in ``__init__.pyi``; they are loaded when first used, so that the command line needs no numpy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
