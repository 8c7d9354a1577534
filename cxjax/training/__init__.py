"""Training: the run's specification, what is compiled, the loop and its files."""
