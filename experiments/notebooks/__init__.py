"""Notebooks: the method, a model of one's own, what a run leaves."""
