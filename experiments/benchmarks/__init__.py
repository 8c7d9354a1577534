"""Benchmarks against other implementations."""
