"""A held-out set as users give it: one batch, a list of them, or a loader."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.data import conform
from cxjax.data import reader_thread
from cxjax.data import user_batches
from cxjax.data import user_loader

# A loader that gives more than this is taken to have no end.
MOST_BATCHES, MOST_BYTES = 2**15, 2e9

Convert = Callable[[Any], types.Batch]


def read(
  held_out: Any,
  shapes: types.Batch,
  needed: Collection[str],
  convert: Convert,
  what: str = 'held_out',
  thread: reader_thread.ReaderThread | None = None,
) -> types.Batch:
  """Reads a held-out set, and joins its batches to one.

  Args:
    held_out: a batch of any number of examples, a list of batches, or anything
      that can be iterated and ends.
    shapes: shapes of the example batch of a plan.
    needed: entries that must match those of the example.
    convert: function that makes a batch of what the user gives.
    what: name of the held-out set, for messages.
    thread: where a loader is read; None is one of its own.

  Returns:
    The batch, as NumPy arrays of all examples; it shares no memory with
    `held_out`.

  Raises:
    UserError: a batch does not match, the set is empty, has no end, or can be
      read as one batch and as two.
  """

  def one(item: Any, name: str) -> types.Batch:
    with conform.reported(name):
      batch = convert(item)
    batch = user_batches.held_out(batch, shapes, needed, name)
    return jax.tree.map(np.array, batch)

  if _is_one(held_out, shapes, needed, what):
    return one(held_out, what)
  loader = user_loader.UserLoader(held_out, what, thread)
  try:
    return loader.thread.call(_joined, loader, one, {*needed, 'weights'}, what)
  finally:
    if thread is None:
      loader.thread.close()


def labels(held_out: Any, shapes: types.Batch) -> jax.ShapeDtypeStruct | None:
  """Shape of the labels of a held-out set, where the example has none.

  Args:
    held_out: a batch, or a list of batches.
    shapes: shapes of the example batch of a plan.

  Returns:
    The shape for as many examples as those of the example; None if there are no
    labels, or for a loader, which only its run may read.
  """
  several = isinstance(held_out, list | tuple)
  for item in (held_out, *(held_out[:1] if several else ())):
    if not _fits(item, shapes, ('x',), exact=False):
      continue
    y = user_batches.to_batch(item).get('y')
    if y is not None and jax.tree_util.all_leaves([y]):
      size = jax.tree.leaves(shapes)[0].shape[0]
      dtype = y.dtype if hasattr(y, 'dtype') else np.asarray(y).dtype
      return types.shape_struct((size, *np.shape(y)[1:]), dtype)
  return None


def _joined(
  loader: user_loader.UserLoader,
  one: Callable[[Any, str], types.Batch],
  names: Collection[str],
  what: str,
) -> types.Batch:
  """All batches of a loader as one."""
  parts: list[types.Batch] = []
  size = 0
  try:
    for item in loader.once():
      name = f'batch {loader.taken} of {what}'
      batch = one(item, name)
      # Labels that nobody reads may have any shape.
      batch = {key: batch[key] for key in batch if key in names}
      like = lambda batch: jax.tree.map(lambda x: (x.shape[1:], x.dtype), batch)
      parts.append(batch)
      errors.require(
        like(batch) == like(parts[0]),
        f'{name} is {_text(batch)}, and the first is {_text(parts[0])}: only '
        'the number of examples may differ.',
      )
      size += sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
      errors.require(
        len(parts) <= MOST_BATCHES and size <= MOST_BYTES,
        f'{what} has no end, or too many batches: {len(parts)} of them have '
        f'{size / 1e6:.0f} MB. Give a list, or a loader that ends, as '
        'itertools.islice(loader, 100).',
      )
  finally:
    loader.close(failed=True)
  errors.require(bool(parts), f'{what} has no batch. Give at least one.')
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _text(batch: types.Batch) -> str:
  """The shapes of a batch, for messages."""
  return ', '.join(
    f'{conform.path_name(path)} {leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree.leaves_with_path(batch)
  )


def _is_one(
  held_out: Any, shapes: types.Batch, needed: Collection[str], what: str
) -> bool:
  """True if a held-out set is one batch, and not batches; asks its shapes."""
  if isinstance(held_out, list | tuple):
    return _is_pair(held_out, shapes, needed, what)
  if isinstance(held_out, str | bytes | Mapping | type):
    return True
  array = any(hasattr(held_out, n) for n in ('shape', '__array__'))
  tree = not jax.tree_util.all_leaves([held_out])
  iterates = isinstance(held_out, Iterable) or hasattr(held_out, '__getitem__')
  return array or tree or not iterates


def _is_pair(
  held_out: list[Any] | tuple[Any, ...],
  shapes: types.Batch,
  needed: Collection[str],
  what: str,
) -> bool:
  """True if a list is one batch, as `(x, labels)`, and not a list of them.

  It is what has exactly the entries of the example, or else what has those that
  are needed. What can be read in both ways is refused, but for a tuple that is
  exactly `(x, labels)`. A list of one array is the same in both.
  """
  if len(held_out) == 1:
    return False

  def fits(names: Collection[str], exact: bool) -> tuple[bool, bool]:
    parts = [_fits(item, shapes, names, exact) for item in held_out]
    return _fits(held_out, shapes, names, exact), bool(parts) and all(parts)

  one, several = fits({*shapes} - {'weights'}, True)
  if several and not one:
    return False
  if one and not several and isinstance(held_out, tuple):
    return True
  loosely = fits(needed, False)
  one, several = one or loosely[0], several or loosely[1]
  errors.require(
    not (one and several),
    f'{what} can be read as (x, labels) and as two batches. Give '
    "{'x': x, 'y': labels} for the one, or [{'x': a}, {'x': b}] for the "
    'others.',
  )
  if one or several:
    return one
  # Neither: the error is that of what it looks like.
  nested = (list, tuple, Mapping)
  return len(held_out) == 2 and not any(isinstance(i, nested) for i in held_out)


def _fits(
  item: Any, shapes: types.Batch, names: Collection[str], exact: bool
) -> bool:
  """True if an item has the entries `names` of the example, in any number."""
  trail = lambda tree: {
    conform.path_name(path): tuple(getattr(x, 'shape', np.shape(x)))[1:]
    for path, x in jax.tree.leaves_with_path(tree)
    if hasattr(x, 'shape') or np.ndim(x)
  }
  pick = lambda batch: {n: batch[n] for n in names if n in batch}
  try:
    batch = user_batches.to_batch(item)
    if exact and {*batch} - {'weights'} != {*names}:
      return False
    return trail(pick(batch)) == trail(pick(shapes))
  except Exception:  # What is wrong is said where the item is read.
    return False
