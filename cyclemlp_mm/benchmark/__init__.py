"""How fast, against what: the measurements of tools/benchmark.py."""
