"""Flax linen modules that return `(logits, activations)`."""
