"""From an idea to a table: an ablation is one TOML, its cells are ordinary runs and ordinary
results. `python -m ecliptica.ablate` is the command.

ablation   what the TOML says
cells      differences x seeds, and the config of each
claims     whose a cell is: config, data and code
store      results.csv, cells.jsonl, units/: what is kept and committed
work       one cell, in a process of its own: train, then measure
runner     which cell next, how many at once, what a failure means
plan       cells, time, memory and the smallest detectable difference, before any of it
report     ABLATION.md, figures, report.html
"""
