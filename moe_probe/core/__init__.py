"""What every room stands on: errors, names of a trace, text, files, results, statistics. No torch."""
