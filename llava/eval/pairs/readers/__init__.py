"""Published benchmarks as items: one file for each form; llava/eval/pairs/config.py lists them."""
