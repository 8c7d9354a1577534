"""Values that arguments and fields should not have, and what comes of them.

`BAD_VALUES=all` tries each of them everywhere; by default every place gets
some, in turn, so that each value is tried somewhere.
"""

import atexit
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import inspect
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors


class Odd:
  """An object that nothing knows."""


class Raises:
  """An object that cannot be asked."""

  def __array__(self, *args, **kwargs):
    raise TypeError('no array')

  def __len__(self):
    raise RuntimeError('no length')


def _raises(*args, **kwargs):
  raise KeyError('raised')


SCALARS = {
  'none': None,
  'text': 'x',
  'no text': '',
  'long text': 'x' * 5_000,
  'two lines': 'a\nb',
  'nul': 'a\0',
  'bytes': b'x',
  'half': 0.5,
  'minus': -1,
  'zero': 0,
  'nan': math.nan,
  'inf': math.inf,
  'tiny': 1e-30,
  'int32': 2**31,
  'int64': 2**64,
  'true': True,
  'complex': 1j,
  'numpy': np.float32(0.5),
  'numpy int': np.int64(3),
}
OTHERS = {
  'list': [],
  'tuple': (),
  'dict': {},
  'names': ['a', 'b'],
  'pairs': [('h', 'h')],
  'nested': {'a': {'b': 1}},
  'blocks': ({'a': 1},),
  'set': {1, 2},
  'range': range(3),
  'object': Odd(),
  'class': Odd,
  'raises': Raises(),
  'function': lambda *args: None,
  'raising': _raises,
  'no arguments': lambda: 0,
  'array': np.ones((4, 3)),
  'no rows': np.zeros((0, 3), np.float32),
  'objects': np.array([None, 'a'], object),
  'strings': np.array(['a', 'b']),
  'jax': jnp.ones(3),
  'key': jax.random.key(0),
  'iterator': iter([1, 2]),
  'path': pathlib.Path('x'),
  'module': os,
  'dtype': jnp.int32,
}
VALUES = {**SCALARS, **OTHERS}
# Values of the right kind, or nearly.
NUMBERS = {
  'largest': 2**31 - 1,
  'beyond': 2**32,
  'digits': '3',
  'one in a list': [3],
  'huge': 1e308,
  'less': -math.inf,
  'small': -2,
  'big': 10**30,
}
TEXTS = {
  'above': '../x',
  'brace': '{',
  'no character': '\udcff',
  'accent': 'ü',
  'star': '*',
  'no': 'False',
  'spaces': ' ',
}
LISTS = {
  'nothing': (None,),
  'one text': ('',),
  'within': (((),),),
  'one true': (True,),
  'not a number': (math.nan,),
  'minus one': (-1,),
  'too many': (1,) * 10_000,
  'large': (2**31 - 1, 2**31 - 1),
  'three': (('a', 'b', 'c'),),
  'sets': ({1},),
}
TYPES = {
  bool: {**NUMBERS, **TEXTS},
  int: NUMBERS,
  float: NUMBERS,
  str: TEXTS,
  tuple: LISTS,
  list: LISTS,
}


def is_whole() -> bool:
  """True if all values are tried everywhere."""
  return os.environ.get('BAD_VALUES') == 'all'


def tried_at(
  place: int, some: int, default: Any = None, whole: bool = True
) -> dict[str, Any]:
  """The values that are tried at the place of a number, `some` of them.

  With a default there are further ones, of its type. `whole` may try all.
  """
  values = {**VALUES, **TYPES.get(type(default), {})}
  if whole and is_whole():
    return values
  names = list(values)
  chosen = [names[(place * some + i) % len(names)] for i in range(some)]
  return {name: values[name] for name in chosen}


@functools.cache
def kept_folder() -> pathlib.Path:
  """A folder for what all tests of a process read."""
  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


@contextlib.contextmanager
def works_or_one_line(test, folder):
  """Fails the test for any other exception, or if a folder has a file."""
  try:
    yield
  except errors.UserError as error:
    test.assertNotIn('\n', str(error))
    test.assertBetween(len(str(error)), 10, 1_100)
  test.assertEmpty(os.listdir(folder))


@dataclasses.dataclass(frozen=True)
class Case:
  """A call that works, whose arguments get other values one by one.

  Attributes:
    function: the function.
    given: the arguments of the call.
    then: called with what the function returns.
    options: further names of arguments, of a function that takes any.
    texts: arguments of which every text is right, as names.
    own: arguments that are functions whose own exceptions end the call.
    some: number of values that an argument gets by default.
    stride: by default only every so many arguments get some.
  """

  function: Callable[..., Any]
  given: dict[str, Any]
  then: Callable[[Any], Any] = lambda result: None
  options: str = ''
  texts: str = ''
  own: str = ''
  some: int = 2
  stride: int = 1

  def __call__(self, **changed):
    """Calls the function."""
    self.then(self.function(**{**self.given, **changed}))

  @property
  def arguments(self):
    """Names of all arguments."""
    kinds = inspect.signature(self.function).parameters.values()
    any_number = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    names = [kind.name for kind in kinds if kind.kind not in any_number]
    if isinstance(self.function, type) and issubclass(self.function, nn.Module):
      names = [name for name in names if name not in ('parent', 'name')]
    return *names, *self.options.split()


def try_case(test, case, start=0):
  """Tries a case; `start` is the first of the values that are in turn."""
  folder = test.create_tempdir().full_path
  test.enter_context(contextlib.chdir(folder))
  case()
  for place, argument in enumerate(case.arguments, start):
    if place % case.stride and not is_whole():
      continue
    for kind, value in tried_at(place, case.some).items():
      if argument in case.texts.split() and isinstance(
        value, str | pathlib.Path
      ):
        continue
      if argument in case.own.split() and callable(value):
        continue
      with (
        test.subTest(f'{argument}={kind}'),
        works_or_one_line(test, folder),
      ):
        case(**{argument: value})
