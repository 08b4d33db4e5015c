"""What all rooms share and no model is needed for: plain data, arrays, text and files.

- Errors, options: `errors` (the exceptions and exit codes), `extras` (optional packages), `settings`, `stage`.
- Names: `schema` (the manifest of a trace), `sites` (activation sites), `units` (references to experts and features).
- Numbers: `routing` (counts of selections), `flops`, and `stats` (tests, intervals, effect sizes on plain arrays).
- Text: `text` (safe, clipped, aligned), `pieces` (tokens as text), `html`, `textfiles` (reading what users bring).
- Output: `files` (whole or absent, checksums), `results` (tables with their parameters), `progress`.
"""
