"""Configs and the scripts that make the tables and pictures of the README."""
