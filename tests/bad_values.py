"""Values that arguments and fields should not have, and what comes of them.

`BAD_VALUES=all` tries each of them everywhere; by default every place gets
some, in turn, so that each value is tried somewhere.
"""

import contextlib
import math
import os
import pathlib

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


def tried_at(place: int, some: int) -> dict:
  """The values that are tried at the place of a number, `some` of them."""
  if os.environ.get('BAD_VALUES') == 'all':
    return VALUES
  names = list(VALUES)
  chosen = [names[(place * some + i) % len(names)] for i in range(some)]
  return {name: VALUES[name] for name in chosen}


@contextlib.contextmanager
def works_or_one_line(test, folder):
  """Fails the test for any other exception, or if a folder has a file."""
  try:
    yield
  except errors.UserError as error:
    test.assertNotIn('\n', str(error))
    test.assertBetween(len(str(error)), 10, 1_100)
  test.assertEmpty(os.listdir(folder))
