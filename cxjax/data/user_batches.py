"""Batches that a user passes to `plan` and `distill`, checked and converted."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.models import adapters

BATCH = ('x', 'y', 'weights')


def arrays(x: Any) -> Any:
  """Replaces leaves that JAX does not know, as torch tensors, by NumPy arrays.

  Args:
    x: a tree of arrays or shapes.

  Returns:
    The tree.
  """
  known = jax.Array | jax.ShapeDtypeStruct
  return jax.tree.map(
    lambda leaf: leaf if isinstance(leaf, known) else np.asarray(leaf), x
  )


def to_batch(x: Any) -> types.Batch:
  """Converts `x`, `(x, y)`, `[x, y]` or a dict to the dict of a batch.

  Args:
    x: a batch; entries of a dict that are None are dropped.

  Returns:
    `{'x', 'y', 'weights'}`, of which the last two are optional.

  Raises:
    UserError: a dict with 'x' has an unknown entry.
  """
  if isinstance(x, tuple | list) and len(x) == 2:
    x = {'x': x[0], 'y': x[1]}
  if not isinstance(x, Mapping) or 'x' not in x:
    return {'x': x}
  others = [str(name) for name in x if name not in BATCH]
  errors.require(
    not others,
    f'A batch has {", ".join(others)} beside x: it may have x, y (labels) and '
    "weights. Drop what is not read; inputs of the model go into x, as {'x': "
    '{...}}.',
  )
  return {name: leaf for name, leaf in x.items() if leaf is not None}


def check_labels(student: adapters.ModelAdapter, batch: types.Batch) -> None:
  """Raises UserError unless there is one integer class for each output.

  Args:
    student: the student.
    batch: shapes or arrays of a batch with labels.
  """
  want = adapters.outputs(student, batch['x'], 'student')[0].shape[:-1]
  y = batch['y']
  errors.require(
    jnp.issubdtype(y.dtype, jnp.integer) and y.shape == want,
    f'The labels are {y.dtype}{list(y.shape)}; they must be integer classes of '
    f'shape {list(want)}. Give y.argmax(-1) of one-hot labels; for a '
    'regression leave labels and alpha out, or give your own loss and metrics.',
  )
  shape = batch['weights'].shape if 'weights' in batch else want
  errors.require(
    shape == want,
    f"'weights' of shape {list(shape)}: give one weight for each output, "
    f'{list(want)}.',
  )


def checked(x: Any, classes: int | None) -> types.Batch:
  """Converts a batch like `to_batch` and checks the range of its labels.

  Args:
    x: a batch.
    classes: number of classes; None does not check labels.

  Returns:
    The batch; labels of weight 0 are 0 in it.

  Raises:
    UserError: a label of positive weight is not one of the classes.
  """
  batch = _clear_ignored_labels(to_batch(x))
  if classes is None or 'y' not in batch or not np.size(batch['y']):
    return batch
  y = np.asarray(batch['y'])
  low, high = y.min(), y.max()
  errors.require(
    low >= 0 and high < classes,
    f'Labels from {low} to {high}: the output has {classes} classes, 0 to '
    f"{classes - 1}. Leave examples out with 'weights' of 0.",
  )
  return batch


def _clear_ignored_labels(batch: types.Batch) -> types.Batch:
  """Sets labels of weight 0 to class 0: many data sets mark them by -100."""
  if not {'y', 'weights'} <= batch.keys():
    return batch
  y, weights = np.asarray(batch['y']), np.asarray(batch['weights'])
  if y.shape != weights.shape:
    return batch
  return {**batch, 'y': np.where(weights == 0, np.zeros_like(y), y)}


def no_labels(rows: types.Batch) -> jax.Array:
  """Placeholder labels, `[B]` int32 zeros, which no stage reads."""
  return jnp.zeros(jax.tree.leaves(rows)[0].shape[:1], jnp.int32)


def held_out(
  batch: types.Batch, shapes: types.Batch, needed: Iterable[str], what: str
) -> types.Batch:
  """Checks a held-out set of any size against the example batch of a plan.

  Args:
    batch: a batch from `checked`.
    shapes: shapes of the example batch.
    needed: entries that must match those of the example.
    what: name of the batch, for messages.

  Returns:
    The batch, as JAX arrays.

  Raises:
    UserError: an entry does not match, or the sizes differ or are 0.
  """
  found = dict(batch)
  wanted = {name: shapes[name] for name in needed if name in shapes}
  got = {name: found[name] for name in wanted if name in found}
  # Labels and weights that the plan lacks are passed on unchanged.
  found |= conform(got, wanted, what, sized=False)
  sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(found)}
  errors.require(
    len(sizes) == 1 and 0 not in sizes,
    f'{what} has parts of {" and ".join(map(str, sorted(sizes)))} examples: '
    'all parts must have the same number, at least 1.',
  )
  return jax.tree.map(jnp.asarray, found)


def conform(batch: Any, shapes: Any, what: str, *, sized: bool = True) -> Any:
  """Casts a batch to the dtypes of the example batch of a plan.

  Args:
    batch: a tree of arrays.
    shapes: shapes of the example, a tree.
    what: name of the batch, for messages.
    sized: whether the batch must have as many examples as the example.

  Returns:
    The batch, as NumPy arrays.

  Raises:
    UserError: the batch has other entries or shapes, or would be rounded.
  """
  leaves, wanted = jax.tree.leaves_with_path(batch), jax.tree.leaves(shapes)
  errors.require(
    _names(batch) == _names(shapes),
    f'{what} has {_names(batch)}, the example of the plan {_names(shapes)}: '
    'they must be alike.',
  )
  cast = []
  for (path, leaf), like in zip(leaves, wanted, strict=True):
    name = f'{_name(path)} of {what}'
    cast.append(_cast(leaf, like.dtype, name))
    _check_shape(np.shape(leaf), like.shape, name, sized)
  return jax.tree.unflatten(jax.tree.structure(shapes), cast)


def _cast(leaf: Any, dtype: Any, name: str) -> np.ndarray:
  """Casts an array; raises UserError if the dtype cannot hold its values."""
  given = np.asarray(leaf).dtype
  to_real = jnp.issubdtype(dtype, jnp.inexact)
  from_real = jnp.issubdtype(given, jnp.inexact)
  errors.require(
    to_real or not from_real,
    f'{name} is {given}, that of the example {dtype}: it would be rounded. '
    'Give an example of the same dtype.',
  )
  cast = np.asarray(leaf, dtype)
  errors.require(
    to_real or np.array_equal(cast, leaf),
    f'{name} has numbers that {dtype}, the dtype of the example, does not '
    'hold. Give an example of another dtype.',
  )
  return cast


def _check_shape(
  shape: tuple[int, ...], like: tuple[int, ...], name: str, sized: bool
) -> None:
  if sized:
    same = shape == like
    advice = 'Drop a last batch that is smaller, or give another example.'
  else:
    same = shape == like or (len(shape) > 0 and shape[1:] == like[1:])
    advice = 'Only the number of examples may differ.'
  errors.require(
    same,
    f'{name} has shape {list(shape)}, that of the example {list(like)}. '
    f'{advice}',
  )


def _name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='.')


def _names(tree: Any) -> str:
  names = (_name(path) for path, _ in jax.tree.leaves_with_path(tree))
  return ', '.join(names) or 'nothing'


class Peeked:
  """An iterable whose first item has been looked at.

  Attributes:
    first: the first item.
  """

  def __init__(self, batches: Any):
    """Takes the first item.

    Args:
      batches: an iterable.

    Raises:
      UserError: the iterable is empty.
    """
    self._batches = batches
    iterator = iter(batches)
    self._again = iterator is not batches
    state = None
    if not self._again and hasattr(batches, 'get_state'):
      state = self._batches.get_state()
    self.first = next(iterator, None)
    errors.require(
      self.first is not None, 'There is no batch. Give at least one.'
    )
    if state is not None:  # The iterator can be set back to its start.
      self._batches.set_state(state)
      self._again = True
    self._ahead: list[Any] = [] if self._again else [self.first]

  def __iter__(self) -> Iterator[Any]:
    """Iterates over all items, the first included."""
    if self._again:
      return iter(self._batches)
    ahead, self._ahead = self._ahead, []
    return itertools.chain(ahead, self._batches)
