"""What joins experts, features and the model: a run in; verdicts, knock-outs, comparisons, inspections and costs out.

- `analyses` the analyses of a trace in their order, by name; `stage` the stage ``analyze``.
- `verdicts` does a topic have an expert of its own? Rules, reasons, evidence of features and knock-outs.
- `ablation` knock-outs: the loss on each topic without experts, groups or features.
- `compare` runs that differ in model, checkpoint, corpus, label, seed or SAE width.
- `inspect` experts and features of one output, its topic, and whether watched units fire.
- `models_table` one record per model and corpus, and the table, page and answer made from them.
- `cost` what a run cost, and what the same would cost for other models.
"""
