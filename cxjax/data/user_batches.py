"""Batches that a user passes to `plan` and `distill`, checked and converted."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.data import conform as conform_lib
from cxjax.data import labels as labels_lib
from cxjax.data import token_ids
from cxjax.methods import weights as weights_lib

BATCH = ('x', 'y', 'weights')


def arrays(x: Any) -> Any:
  """Replaces leaves that JAX does not know, as torch tensors, by NumPy arrays.

  Args:
    x: a tree of arrays or shapes.

  Returns:
    The tree.

  Raises:
    UserError: a leaf is no array of numbers.
  """
  known = jax.Array | jax.ShapeDtypeStruct
  name = conform_lib.path_name
  with conform_lib.reported('The example'):
    return jax.tree.map_with_path(
      lambda path, leaf: (
        leaf
        if isinstance(leaf, known)
        else conform_lib.host_array(leaf, name(path))
      ),
      x,
      is_leaf=_is_row,
    )


def _is_row(x: Any) -> bool:
  """True for a part of a batch that is a list of numbers, as labels may be."""
  return isinstance(x, list) and not any(map(np.ndim, x))


def check_example(batch: types.Batch) -> None:
  """Checks the shapes of an example.

  Args:
    batch: shapes of a batch.

  Raises:
    UserError: not all parts have as many rows, or an input has the name of the
      keys of dropout, which neither a teacher nor an evaluation gets.
  """
  x, keys = batch['x'], jax.dtypes.prng_key
  taken = isinstance(x, Mapping) and 'dropout' in x
  errors.require(
    not taken or jnp.issubdtype(getattr(x['dropout'], 'dtype', object), keys),
    "The input 'dropout' is no array of PRNG keys: the name is taken by the "
    'keys of dropout, which only a student in training gets. Rename the input.',
  )
  leaves = jax.tree.leaves_with_path(batch)
  errors.require(bool(leaves), 'The example of a batch has no array.')
  for path, leaf in leaves:
    errors.require(
      conform_lib.whole_bytes(leaf.dtype) == leaf.dtype,
      f'{conform_lib.path_name(path)} of the example is {leaf.dtype}: numbers '
      'of less than 8 bits cannot be placed on the devices of a run. Give int8 '
      'or bfloat16, which the model converts.',
    )
    errors.require(
      leaf.ndim > 0,
      f'{conform_lib.path_name(path)} of the example has no axis: the first '
      'axis must be the examples. Give an array of one row at least.',
    )
    errors.require(
      0 not in leaf.shape[1:],
      f'{conform_lib.path_name(path)} of the example is {list(leaf.shape)} and '
      'has no numbers. Leave it out.',
    )
  sizes = {conform_lib.path_name(path): leaf.shape[0] for path, leaf in leaves}
  errors.require(
    len(set(sizes.values())) == 1 and 0 not in sizes.values(),
    'The example has '
    + arguments.listed([f'{n} rows of {name}' for name, n in sizes.items()])
    + ': the first axis of each must be the same examples, at least 1.'
    + arguments.list_advice(batch),
  )


def is_pair(x: Any) -> bool:
  """True for a pair that is read as `(x, labels)` by the order alone."""
  return isinstance(x, tuple | list) and len(x) == 2 and not _is_named(x)


def _is_named(x: Any) -> bool:
  """True for a named tuple whose fields are entries of a batch."""
  fields = getattr(x, '_fields', ())
  return isinstance(x, tuple) and 'x' in fields and {*fields} <= {*BATCH}


def _is_alone(x: Any) -> bool:
  """True for a list of one array, as torch's `TensorDataset(x)` makes it."""
  return type(x) in (list, tuple) and len(x) == 1 and hasattr(x[0], 'shape')


def to_batch(x: Any) -> types.Batch:
  """Converts `x`, `[x]`, `(x, y)`, `[x, y]` or a dict to the dict of a batch.

  Args:
    x: a batch; entries of a dict that are None are dropped. Any mapping is a
      dict, as a `BatchEncoding` of transformers. A list of one array is that
      array; a model that reads the list gets it from `{'x': [x]}`.

  Returns:
    `{'x', 'y', 'weights'}`, of which the last two are optional.

  Raises:
    UserError: it is None or made of Python numbers, has a nested list of them,
      or a dict with 'x' has an unknown entry.
  """
  errors.require(not _is_numbers(x), lambda: _numbers_advice(x))
  if _is_named(x):
    x = x._asdict()
  elif is_pair(x):
    x = {'x': x[0], 'y': x[1]}
  elif _is_alone(x):
    x = x[0]
  if not isinstance(x, Mapping) or 'x' not in x:
    x = {'x': x}
  others = [str(name) for name in x if name not in BATCH]
  errors.require(x['x'] is not None, 'x of a batch is None: give arrays.')
  errors.require(
    not others,
    f'A batch has {", ".join(others)} beside x: it may have x, y (labels) and '
    "weights. Drop what is not read; inputs of the model go into x, as {'x': "
    '{...}}.',
  )
  x = {name: _plain(leaf) for name, leaf in x.items() if leaf is not None}
  _check_not_nested(x)
  return x


def _is_numbers(node: Any) -> bool:
  """True for a number of Python, and for lists and tuples of nothing else."""
  if type(node) in (list, tuple):
    return bool(node) and all(map(_is_numbers, node))
  return isinstance(node, bool | int | float | complex | np.number)


def _numbers_advice(x: Any) -> str:
  """The error of a batch of Python numbers: which arrays to give."""
  is_list = isinstance(x, list | tuple)
  kind = f'{type(x).__name__} of numbers' if is_list else 'number'
  # Of a pair, np.array would make two rows.
  pair = is_list and len(x) == 2
  arrays = '(np.array(x), np.array(labels)), or ' if pair else ''
  rows = 'np.array(rows) of the inputs alone' if pair else 'np.array(rows)'
  return (
    f'A batch is a {kind} of Python, and must be of arrays. Rows of a list, as '
    f'of array.tolist(), would be batches: give {arrays}{rows}.'
  )


def _check_not_nested(node: Any, *path: Any) -> None:
  """Raises UserError for a nested list of numbers, or a tuple of them."""
  if isinstance(node, Mapping):
    for key, leaf in node.items():
      _check_not_nested(leaf, *path, key)
  elif type(node) in (list, tuple) and not _is_row(node):
    name = '.'.join(map(str, path))
    kind = 'tuple' if isinstance(node, tuple) else 'nested list'
    errors.require(
      not _is_numbers(node),
      f'{name} of a batch is a {kind} of numbers of Python, each of which '
      f'would be an input. Give an array, as np.array({name}).',
    )


def _plain(node: Any) -> Any:
  """A tree with a dict for each mapping that JAX does not know."""
  unknown = isinstance(node, Mapping) and jax.tree_util.all_leaves([node])
  if unknown or type(node) is dict:
    return {name: _plain(leaf) for name, leaf in node.items()}
  if type(node) in (list, tuple):
    return type(node)(map(_plain, node))
  return node


def checked(
  x: Any,
  classes: int | None,
  *,
  soft: bool = False,
  ids: token_ids.Ids = token_ids.ANY,
) -> types.Batch:
  """Converts a batch like `to_batch`; checks labels, weights and token ids.

  Args:
    x: a batch.
    classes: number of classes; None does not check labels.
    soft: whether labels are probabilities of the classes.
    ids: which token ids there are.

  Returns:
    The batch, as NumPy arrays; labels that its weights or its own mask leave
    out are 0 in it, and inputs that do not count are numbers.

  Raises:
    UserError: a label of positive weight is not one of the classes, or no
      probabilities; a weight is negative or not finite; a token id is
      unknown; an entry is no array.
  """
  batch = to_batch(x)
  read, name = conform_lib.host_array, conform_lib.path_name
  batch = jax.tree.map_with_path(
    lambda path, leaf: read(leaf, name(path)), batch, is_leaf=_is_row
  )
  wider = lambda leaf: leaf.astype(
    conform_lib.whole_bytes(leaf.dtype), copy=False
  )
  batch = jax.tree.map(wider, batch)
  check_weights(batch)
  batch = weights_lib.cleared_input(ids.checked(batch))
  return labels_lib.checked(batch, classes, soft, ids.with_mask)


def check_weights(batch: types.Batch) -> None:
  """Raises UserError for weights that are negative or not finite."""
  weights = batch.get('weights')
  if weights is None:
    return
  errors.require(
    isinstance(weights, np.ndarray)
    and labels_lib.is_real(weights.dtype)
    and bool(np.all((weights >= 0) & (weights < np.inf))),
    "'weights' must be finite numbers that are not negative; leave examples "
    'out with 0.',
  )


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
    The batch, as NumPy arrays.

  Raises:
    UserError: an entry does not match, the sizes differ or are 0, or nothing
      counts.
  """
  found = dict(batch)
  wanted = {name: shapes[name] for name in needed if name in shapes}
  got = {name: found[name] for name in wanted if name in found}
  # Labels and weights that the plan lacks are passed on unchanged.
  found |= conform_lib.conform(got, wanted, what, sized=False)
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(found)}
  errors.require(
    len(sizes) == 1 and not sizes & {(0,), ()},
    f'{what} has parts of '
    f'{" and ".join(str(n[0]) if n else "no" for n in sorted(sizes))} '
    'examples: all parts must have the same number, at least 1.',
  )
  if 'weights' in found:
    errors.require(
      bool(np.any(found['weights'])),
      f'All weights of {what} are 0: nothing counts.',
    )
  return found


def nan_examples(tree: Any, batch: types.Batch) -> np.ndarray:
  """Marks the examples that count and have a NaN.

  Args:
    tree: the part of the batch that is searched.
    batch: NumPy arrays, with 'weights' where there are some.

  Returns:
    `[N]` booleans.
  """
  size = len(jax.tree.leaves(batch)[0])
  flat = lambda leaf: leaf.reshape(size, -1)
  bad = np.zeros(size, bool)
  for leaf in jax.tree.leaves(tree):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      bad |= np.isnan(flat(leaf)).any(1)
  if 'weights' in batch:
    bad &= flat(batch['weights'] > 0).any(1)
  return bad
