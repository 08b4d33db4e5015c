"""What joins experts, features and the model: verdicts, knock-outs, comparisons, inspection, cost."""
