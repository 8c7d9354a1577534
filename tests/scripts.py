"""Imports of scripts whose flags share names, into one process. Not a test."""

import contextlib
import importlib
import types

from absl import flags
from absl.testing import flagsaver

# Flags of the scripts by module, also of those that another one replaced.
_OWN: dict[str, dict[str, flags.Flag]] = {}


def load(name):
  """Imports a script; its flags take the place of others of the same names."""
  before = _taken_out()
  try:
    module = importlib.import_module(name)
    _note()
  finally:
    _put_in(before)
  use(module)
  return module


def use(module):
  """Puts the flags of the scripts that a module imports in force."""
  _note()
  for name in _imported(module, {}):
    _put_in(_OWN.get(name, {}))


def take_out():
  """Takes the flags of all scripts out, until a module uses them."""
  _taken_out()


@contextlib.contextmanager
def in_force(module):
  """Puts the flags of the scripts that a module imports in force, for a while.

  Flags of packages that are imported meanwhile stay: none is imported twice.
  """
  take_out()
  use(module)
  with flagsaver.flagsaver():
    before = {*flags.FLAGS}
    yield
    _note()
    made = {n: flags.FLAGS[n] for n in flags.FLAGS if n not in before}
  for name, flag in made.items():
    if '.' not in name:  # No field of a config, which a command defines.
      flags.FLAGS[name] = flag
  take_out()


def _note():
  """Notes the flags of all scripts that were imported."""
  for module, found in flags.FLAGS.flags_by_module_dict().items():
    if module.partition('.')[0] in ('experiments', 'launch'):
      own = _OWN.setdefault(module, {})
      own.update({flag.name: flag for flag in found})


def _taken_out():
  """Removes the flags of scripts that are in force; returns them."""
  _note()
  names = {name for own in _OWN.values() for name in own}
  found = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
  for name in found:
    delattr(flags.FLAGS, name)
  return found


def _put_in(found):
  for name, flag in found.items():
    if name in flags.FLAGS:
      delattr(flags.FLAGS, name)
    flags.FLAGS[name] = flag


def _imported(module, seen):
  """Names of the scripts that a module imports, the inner ones first."""
  seen[module.__name__] = None
  for each in list(vars(module).values()):
    if not isinstance(each, types.ModuleType) or each.__name__ in seen:
      continue
    if each.__name__.partition('.')[0] in ('experiments', 'launch'):
      _imported(each, seen)
  return [*reversed(seen)]
