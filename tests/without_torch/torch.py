"""Stands for PyTorch that is not installed. Not a test.

tensorboardX imports it if it is there, which takes two seconds in every
process.
"""

raise ImportError
