"""What a user gives as a batch, checked and as `cxjax.step` takes it."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.data import loader
from cxjax.models import adapters
from cxjax.methods import train_step

BATCH = ('x', 'y', 'weights')


def arrays(x: Any) -> Any:
  """Arrays of NumPy in place of others that JAX does not know, as torch's."""
  known = jax.Array | jax.ShapeDtypeStruct
  return jax.tree.map(
    lambda leaf: leaf if isinstance(leaf, known) else np.asarray(leaf), x
  )


def to_batch(x: Any) -> train_step.Batch:
  """`x`, `(x, y)`, `[x, y]` or a dict of a batch as that dict, without None."""
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


def check_labels(student: adapters.ModelAdapter, batch: train_step.Batch) -> None:
  """Raises UserError unless the labels are classes, one for each output."""
  want = adapters.outputs(student, batch['x'], 'student')[0].shape[:-1]
  y = batch['y']
  errors.require(
    jnp.issubdtype(y.dtype, jnp.integer) and y.shape == want,
    f'The labels are {y.dtype}{list(y.shape)}; they must be whole numbers, the '
    f'classes, {list(want)}. Give y.argmax(-1) of one-hot labels; of a '
    'regression leave labels and alpha out, or give your own loss and metrics.',
  )
  shape = batch['weights'].shape if 'weights' in batch else want
  errors.require(
    shape == want,
    f"'weights' of shape {list(shape)}: give one for each output, "
    f'{list(want)}.',
  )


def held_out(
  batch: train_step.Batch, shapes: train_step.Batch, needed: Iterable[str], what: str
) -> train_step.Batch:
  """A batch of any number of examples, if they are like those of the plan.

  Args:
    batch: from `checked`.
    shapes: of a batch of the plan.
    needed: which parts of it must be like those.
    what: to call it in messages.

  Returns:
    The batch, as arrays of JAX.

  Raises:
    UserError: it is not like them, or is empty.
  """
  found = dict(batch)
  wanted = {name: shapes[name] for name in needed if name in shapes}
  got = {name: found[name] for name in wanted if name in found}
  # Labels and weights that the plan has not are passed on as they are.
  found |= loader.alike(got, wanted, what, sized=False)
  sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(found)}
  errors.require(
    len(sizes) == 1 and 0 not in sizes,
    f'{what} has parts of {" and ".join(map(str, sorted(sizes)))} examples: '
    'they must be as many, and one at least.',
  )
  return jax.tree.map(jnp.asarray, found)


def checked(x: Any, classes: int | None) -> train_step.Batch:
  """`to_batch`; raises UserError for labels that are none of the classes."""
  batch = _classes_where_read(to_batch(x))
  if classes is None or 'y' not in batch or not np.size(batch['y']):
    return batch
  y = np.asarray(batch['y'])
  low, high = y.min(), y.max()
  errors.require(
    low >= 0 and high < classes,
    f'Labels from {low} to {high}: the output has {classes} classes, 0 to '
    f"{classes - 1}. Leave examples out by 'weights' of 0.",
  )
  return batch


def _classes_where_read(batch):
  """A label that no weight counts, as -100, is class 0."""
  if not {'y', 'weights'} <= batch.keys():
    return batch
  y, weights = np.asarray(batch['y']), np.asarray(batch['weights'])
  if y.shape != weights.shape:
    return batch
  return {**batch, 'y': np.where(weights == 0, np.zeros_like(y), y)}


def no_labels(rows: train_step.Batch) -> jax.Array:
  """Labels of a batch that has none; no stage reads them."""
  return jnp.zeros(jax.tree.leaves(rows)[0].shape[:1], jnp.int32)


class Peeked:
  """An iterable whose first item was looked at.

  Attributes:
    first: that item.
  """

  def __init__(self, batches: Any):
    """Takes an item; raises UserError if there is none."""
    self._batches = batches
    iterator = iter(batches)
    self._again = iterator is not batches
    state = None
    if not self._again and hasattr(batches, 'get_state'):
      state = self._batches.get_state()
    self.first = next(iterator, None)
    errors.require(self.first is not None, 'There is no batch.')
    if state is not None:  # As if nothing had been read; it may be asked again.
      self._batches.set_state(state)
      self._again = True
    self._ahead: list[Any] = [] if self._again else [self.first]

  def __iter__(self) -> Iterator[Any]:
    if self._again:
      return iter(self._batches)
    ahead, self._ahead = self._ahead, []
    return itertools.chain(ahead, self._batches)
