"""Analysis: dry runs, costs of compiled programs, probes and plots."""
