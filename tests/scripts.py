"""Imports of scripts whose flags share names, into one process. Not a test."""

import importlib
import importlib.util
import pathlib
import re
import sys

from absl import flags

DEFINED = re.compile(r"DEFINE_\w+\(\s*'(\w+)'")


def load(name):
  """Imports a script; its flags take the place of others of the same names."""
  if name not in sys.modules:
    source = pathlib.Path(importlib.util.find_spec(name).origin).read_text()
    for flag in DEFINED.findall(source):
      if flag in flags.FLAGS:
        delattr(flags.FLAGS, flag)
  return importlib.import_module(name)
