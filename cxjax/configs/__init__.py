"""Configs: from ml_collections and flags to runs."""
