"""Configs of the experiments, and scripts that make tables and pictures."""
