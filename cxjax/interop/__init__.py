"""Interoperability with other tools: Hugging Face folders and StableHLO."""
