"""Configs of the experiments, and scripts that make tables and pictures."""

from experiments import interrupts as interrupts
