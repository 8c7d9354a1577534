"""The Python interface: plan and distill."""
