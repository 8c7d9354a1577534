"""Analysis: dry runs, costs, probes and plots."""
