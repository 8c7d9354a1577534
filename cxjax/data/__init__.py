"""Data on the host: corpora, tokenizers, packing and loaders."""
