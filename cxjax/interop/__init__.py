"""Interoperability: Hugging Face folders and StableHLO."""
