"""Batches of users, made exactly what the example batch of a plan is."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.methods import weights as weights_lib

# What to do with a batch that has fewer examples than the example of the plan.
LAST_BATCH = ('error', 'drop', 'pad')


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
  """Makes one line of what a batch raises as it is converted; names it."""
  try:
    yield
  except errors.UserError as error:
    raise errors.UserError(f'{what}: {error}') from error
  except Exception as error:
    raise errors.UserError(f'{what} cannot be read: {reason(error)}') from error


def reason(error: BaseException) -> str:
  """The type of an exception and its message, without the lines in between."""
  try:
    message = str(error)
  except Exception:  # A class of the user.
    message = ''
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  if len(lines) > 2:  # A traceback of another process.
    lines = [lines[0], lines[-1]]
  text = ' '.join(lines).rstrip('.') or 'no message'
  return f'{type(error).__name__}: {text}.'


def host_array(leaf: Any, name: str) -> np.ndarray:
  """Makes a NumPy array of numbers of an array of any library.

  Args:
    leaf: the array, or anything that NumPy makes one of.
    name: its name, for messages.

  Returns:
    The array; it may share the memory of `leaf`.

  Raises:
    UserError: it is no array, or one of texts or objects.
  """
  try:
    found = np.asarray(leaf)
  except Exception as error:
    found = _resolved(leaf)
    if found is None:
      raise errors.UserError(
        f'{name} is a {type(leaf).__name__}, which NumPy cannot read: '
        f'{reason(error)}'
      ) from error
  errors.require(
    found.dtype != object or found.shape != () or not hasattr(leaf, '__iter__'),
    f'{name} is a {type(leaf).__name__}, which is iterated: give one of its '
    'batches, as next(iter(loader)).',
  )
  errors.require(
    found.dtype.kind != 'm'  # Which NumPy counts as integers.
    and any(jnp.issubdtype(found.dtype, kind) for kind in (bool, jnp.number)),
    f'{name} is {_described(leaf, found)}: give numbers, in an array whose '
    'rows have one length.',
  )
  errors.require(
    not np.ma.is_masked(leaf),
    f'{name} is a masked array, and what it hides would count. Fill it, and '
    "leave examples out with 'weights' of 0.",
  )
  # JAX reads no other byte order.
  return found if found.dtype.isnative else found.astype(found.dtype.name)


def whole_bytes(dtype: Any) -> Any:
  """The dtype, or one of 8 bits or more for numbers that have fewer."""
  integer = jnp.issubdtype(dtype, jnp.integer)
  if not integer and not jnp.issubdtype(dtype, jnp.floating):
    return dtype
  info: Any = jnp.iinfo(dtype) if integer else jnp.finfo(dtype)
  if info.bits >= 8:
    return dtype
  if not integer:
    return np.dtype(np.float32)
  return np.dtype(np.int8 if info.min < 0 else np.uint8)


def _resolved(leaf: Any) -> np.ndarray | None:
  """An array that NumPy does not read as it is: a view of torch, a bfloat16."""
  for name in ('resolve_conj', 'resolve_neg'):  # DLPack drops these bits.
    if callable(resolve := getattr(leaf, name, None)):
      leaf = resolve()
  if not hasattr(leaf, '__dlpack__'):
    return None
  for read in (np.asarray, lambda leaf: np.asarray(jnp.from_dlpack(leaf))):
    try:
      return read(leaf)
    except Exception:  # On another device, or with a gradient.
      continue
  return None


def _described(leaf: Any, found: np.ndarray) -> str:
  if found.dtype == object:
    return f'a {type(leaf).__name__} of Python objects'
  return f'a {type(leaf).__name__} of dtype {found.dtype}'


def fit(batch: Any, shapes: Any, what: str, last_batch: str = 'error') -> Any:
  """Makes a batch exactly what the example batch of a plan is.

  Args:
    batch: a tree of arrays; with 'pad' from `checked`.
    shapes: shapes of the example, a tree; with 'pad' it has weights.
    what: name of the batch, for messages.
    last_batch: treatment of a batch with fewer examples: 'error' refuses it;
      'drop' leaves it out; 'pad' repeats examples with weight 0.

  Returns:
    The batch, as NumPy arrays; None if it is left out.

  Raises:
    UserError: the batch does not fit, as for `conform`.
  """
  if last_batch == 'error':
    return conform(batch, shapes, what)
  size = jax.tree.leaves(shapes)[0].shape[0]
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
  rows = next(iter(sizes))[0] if len(sizes) == 1 and () not in sizes else size
  if last_batch == 'drop' and rows < size:
    return None
  if last_batch == 'pad':
    if 'weights' not in batch:
      batch = {**batch, 'weights': _weights(batch, rows, shapes)}
    if 0 < rows < size:
      batch = _padded(batch, size)
  return conform(batch, shapes, what)


def _weights(batch: types.Batch, rows: int, shapes: types.Batch) -> Any:
  """The weights that a batch without weights has: its mask, or 1."""
  shape = (rows, *shapes['weights'].shape[1:])
  mask = None
  if isinstance(batch.get('x'), Mapping):
    mask = weights_lib.output_weights(batch, (*shape, 1))
  return np.ones(shape, np.float32) if mask is None else np.asarray(mask, float)


def _padded(batch: types.Batch, size: int) -> types.Batch:
  """Repeats examples up to `size`, with weight 0."""
  rows = len(batch['weights'])
  batch = jax.tree.map(lambda leaf: leaf[np.arange(size) % rows], batch)
  batch['weights'][rows:] = 0  # A copy, as an index array makes one.
  return batch


def conform(batch: Any, shapes: Any, what: str, *, sized: bool = True) -> Any:
  """Casts a batch to the dtypes of the example batch of a plan.

  Args:
    batch: a tree of arrays.
    shapes: shapes of the example, a tree.
    what: name of the batch, for messages.
    sized: whether the batch must have as many examples as the example.

  Returns:
    The batch, as NumPy arrays, which may share the memory of the batch.

  Raises:
    UserError: the batch has other entries or shapes, or numbers of another
      kind, or that the dtype of the example cannot hold.
  """
  leaves, wanted = jax.tree.leaves_with_path(batch), jax.tree.leaves(shapes)
  here, there = _names(batch), _names(shapes)
  errors.require(
    here == there,
    f'{what} has {arguments.listed(here) or "nothing"}, the example of the '
    f'plan {arguments.listed(there) or "nothing"}: they must be alike. Give '
    'the plan one of the batches as its example, or batches like the example.'
    f'{arguments.list_advice(batch)}',
  )
  cast = []
  for (path, leaf), like in zip(leaves, wanted, strict=True):
    name = f'{path_name(path)} of {what}'
    found = host_array(leaf, name)
    _check_shape(found.shape, like.shape, name, sized)
    cast.append(_cast(found, like.dtype, name))
  return jax.tree.unflatten(jax.tree.structure(shapes), cast)


def _cast(leaf: np.ndarray, dtype: Any, name: str) -> np.ndarray:
  """Casts an array; raises UserError if the dtype cannot hold its values.

  Only what keeps its meaning is cast: a real number may be rounded to another
  precision, but an integer does not become a real number. Bytes of an image
  have another scale than floats.
  """
  given = leaf.dtype
  if given == dtype:
    return leaf
  kinds = (bool, jnp.integer, jnp.floating, jnp.complexfloating)
  here, there = (
    next((i for i, kind in enumerate(kinds) if jnp.issubdtype(d, kind)), -1)
    for d in (given, dtype)
  )
  exact = max(here, there) <= 1  # The values are compared below.
  weights = name.startswith('weights ') and max(here, there) <= 2
  errors.require(
    here == there or exact or weights,
    f'{name} is {given}, that of the example {dtype}: numbers of another kind '
    'are not converted, they may have another scale. Give both the same dtype.',
  )
  with np.errstate(all='ignore'):
    cast = np.asarray(leaf, dtype)
    if there <= 1:
      same = np.array_equal(cast, leaf)
    elif np.can_cast(given, dtype):
      same = True
    else:  # Rounded, but not to infinity.
      same = not np.any(np.isinf(cast) & ~np.isinf(leaf))
  # An example of 64 bits has lost them.
  narrowed = (
    given.itemsize == 8 and jax.dtypes.canonicalize_dtype(given) == dtype
  )
  errors.require(
    bool(same),
    f'{name} has numbers that {dtype}, the dtype of the example, does not '
    'hold. '
    + (
      "Make them smaller, or set jax.config.update('jax_enable_x64', True) and "
      'plan again.'
      if narrowed
      else 'Give an example of another dtype.'
    ),
  )
  return cast


def _check_shape(
  shape: tuple[int, ...], like: tuple[int, ...], name: str, sized: bool
) -> None:
  rows = len(shape) == len(like) > 0 and shape[1:] == like[1:]
  one = len(shape) == len(like) - 1 and shape == like[1:]
  same = shape == like or (rows and not sized)
  if one:
    advice = 'It is that of one example: give examples together, as np.stack.'
  elif not sized:
    advice = 'Only the number of examples may differ.'
  elif rows and 0 < shape[0] < like[0]:
    advice = (
      "Give last_batch='pad' or 'drop' for a last batch of fewer examples; or "
      'drop it in the loader.'
    )
  else:
    advice = 'Give batches of one shape, or another example.'
  errors.require(
    same,
    f'{name} has shape {list(shape)}, that of the example {list(like)}. '
    f'{advice}',
  )


def path_name(path: tuple[Any, ...]) -> str:
  """Name of a leaf of a batch, as in 'x.tokens'."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def _names(tree: Any) -> list[str]:
  return [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
