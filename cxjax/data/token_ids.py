"""Token ids in the batches of a user, which must be those of the models."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.methods import weights as weights_lib


@dataclasses.dataclass(frozen=True)
class Ids:
  """The token ids that models read.

  JAX has no error for an id that an embedding lacks: it becomes NaN, or another
  id if it is negative.

  Attributes:
    size: number of ids; None checks nothing.
    with_mask: adds the mask of a plan to a batch; None if the batch has one.
  """

  size: int | None = None
  with_mask: Callable[[types.Batch], types.Batch] | None = None

  def checked(self, batch: types.Batch) -> types.Batch:
    """Checks the token ids of a batch.

    Args:
      batch: NumPy arrays.

    Returns:
      The batch. Unknown ids of padding, which its own mask or weights leave
      out, are 0 in it.

    Raises:
      UserError: an id that counts is not from 0 to `size` - 1, or a position
        that counts is none of the tokens.
    """
    x, size = batch['x'], self.size
    _check_positions(batch)
    tokens = _tokens(x)
    if size is None or tokens is None:
      return batch
    unknown = (tokens < 0) | (tokens >= size)
    if not unknown.any():
      return batch
    whole = batch if self.with_mask is None else self.with_mask(batch)
    bad = unknown & _counts(whole, tokens.shape)
    if bad.any():
      place = _first(bad)
      raise errors.UserError(
        f'{bad.sum()} token ids are not among the 0 to {size - 1} of the '
        f'models: the first is {tokens[place]}, in example {place[0]}. Take '
        'the tokenizer of the models; leave padding out by a mask.'
      )
    if self.with_mask is not None:  # The mask may read the ids.
      return batch
    return {**batch, 'x': known(x, size)}


ANY = Ids()


def size_of(*models: Any) -> int | None:
  """Number of token ids that all models read; None if none of them says."""
  sizes = [model.abilities.vocab_size for model in models]
  return min((size for size in sizes if size is not None), default=None)


def known(x: types.Input, size: int | None) -> Any:
  """An input with 0 in place of the token ids that no model has."""
  tokens = _tokens(x)
  if size is None or tokens is None:
    return x
  where = np.where if isinstance(tokens, np.ndarray) else jnp.where
  found = where((tokens < 0) | (tokens >= size), 0, tokens).astype(tokens.dtype)
  return {**x, 'tokens': found} if isinstance(x, Mapping) else found


def _tokens(x: Any) -> Any:
  """The token ids of an input; None if there are none."""
  found = x.get('tokens') if isinstance(x, Mapping) else x
  dtype = getattr(found, 'dtype', None)
  real = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
  return found if real else None


def _first(bad: np.ndarray) -> tuple[int, ...]:
  """Place of the first true entry."""
  return tuple(int(index[0]) for index in bad.nonzero())


def _check_positions(batch: types.Batch) -> None:
  """Raises UserError for target positions that count and are not there."""
  tokens, x = _tokens(batch['x']), batch['x']
  found: Any = x.get('target_positions') if isinstance(x, Mapping) else None
  if tokens is None or np.ndim(found) != 2 or np.ndim(tokens) < 2:
    return
  length = tokens.shape[1]
  bad = (found < 0) | (found >= length)
  counts = np.asarray(batch.get('weights', 1)) != 0
  if counts.shape == bad.shape:
    bad = bad & counts
  elif counts.shape == bad.shape[:1]:  # Of examples.
    bad = bad & counts[:, None]
  if bad.any():
    place = _first(bad)
    raise errors.UserError(
      f'target_positions has {found[place]} in example {place[0]}; the '
      f'positions of its tokens are 0 to {length - 1}. Give those that do not '
      'count the weight 0.'
    )


def _counts(batch: types.Batch, shape: tuple[int, ...]) -> Any:
  """True where ids count; an array that broadcasts to `shape`, or one bool."""
  mask, weights = weights_lib.token_mask(batch['x']), batch.get('weights')
  found: Any = True
  if weights is not None:  # A token without a weight of its own is read.
    found = (np.asarray(weights) != 0).reshape(len(weights), -1).any(1)
    found = found.reshape(-1, *[1] * (len(shape) - 1))
  if mask is not None and mask.shape == shape:
    found = found & (np.asarray(mask) != 0)
  return found
