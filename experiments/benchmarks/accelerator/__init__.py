"""Benchmarks on one GPU; `__main__.py` says how to run them."""
