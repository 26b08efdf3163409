"""What tools/bench_attention.py measures, against what, and how it tells of it."""
