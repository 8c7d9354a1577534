"""Parts of a batch that are computed one after the other, to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.methods import training_mode


def split(tree: Any, parts: int) -> Any:
  """Splits `[B, ...]` leaves into `[parts, B / parts, ...]`.

  Example `i` goes to part `i % parts`: a batch that is sharded over devices is
  so in each of its parts, and none of it moves.
  """
  sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
  errors.require(
    not any(size % parts for size in sizes),
    f'microbatches={parts} must divide the {max(sizes)} examples of a batch.',
  )
  return jax.tree.map(
    lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), tree
  )


def apply(fun: Callable[[Any], Any], tree: Any, parts: int) -> Any:
  """Computes `fun(tree)` one part of the leading axis after the other.

  Args:
    fun: function of a tree of `[B, ...]` leaves that returns another; it treats
      each row by itself.
    tree: its argument.
    parts: number of parts, at most `B`. If they do not divide it, rows are
      repeated to fill them up, and what `fun` makes of those is dropped.

  Returns:
    The tree of `[B, ...]` leaves.
  """
  if parts == 1:
    return fun(tree)
  size = jax.tree.leaves(tree)[0].shape[0]
  parts = min(parts, size)
  whole = -(-size // parts) * parts
  if whole > size:
    rows = jnp.arange(whole) % size
    tree = jax.tree.map(lambda leaf: leaf[rows], tree)
  out = jax.lax.map(fun, split(tree, parts))
  join = lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
  out = jax.tree.map(join, out)
  return out if whole == size else jax.tree.map(lambda leaf: leaf[:size], out)


def value_and_grad(fun: Callable[..., Any], parts: int) -> Callable[..., Any]:
  """`jax.value_and_grad` of a loss, one part of a batch after the other.

  Args:
    fun: `(learned, changed, key, batch, targets) -> (loss, (terms, changed))`,
      as of `train_step`, where the loss of a part is its share of the sum.
    parts: number of parts.

  Returns:
    A function of the same arguments: `((loss, (terms, changed)), grads)`.
  """
  grad = jax.value_and_grad(fun, has_aux=True)
  if parts == 1:
    return grad

  def summed(
    learned: Any, changed: Any, key: Any, batch: Any, targets: Any
  ) -> Any:
    shapes = jax.eval_shape(grad, learned, changed, key, batch, targets)
    (loss, (terms, _)), grads = shapes
    zeros = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), ((loss, terms), grads)
    )

    def add(carried: Any, part: Any) -> tuple[Any, None]:
      total, before = carried
      (loss, (terms, changed)), grads = grad(learned, before, *part)
      changed = training_mode.overlay(before, changed)
      total = jax.tree.map(jnp.add, total, ((loss, terms), grads))
      return (total, changed), None

    each = _parts(key, batch, targets, parts)
    carried, _ = jax.lax.scan(add, (zeros, changed), each)
    ((loss, terms), grads), changed = carried
    return (loss, (terms, changed)), grads

  return summed


def value(fun: Callable[..., Any], parts: int) -> Callable[..., jax.Array]:
  """The loss of `value_and_grad`, alone; its own gradient keeps one part."""

  def summed(
    learned: Any, changed: Any, key: Any, batch: Any, targets: Any
  ) -> jax.Array:
    if parts == 1:
      return fun(learned, changed, key, batch, targets)[0]
    loss = jax.checkpoint(lambda *args: fun(*args)[0])

    def one(before: Any, part: Any) -> tuple[Any, jax.Array]:
      _, (_, changed) = jax.lax.stop_gradient(fun(learned, before, *part))
      after = training_mode.overlay(before, changed)
      return after, loss(learned, before, *part)

    each = _parts(key, batch, targets, parts)
    return jnp.sum(jax.lax.scan(one, changed, each)[1])

  return summed


def _parts(key: Any, batch: Any, targets: Any, parts: int) -> Any:
  """Keys, batches and targets of each part; `[parts, ...]` leaves."""
  keys = None if key is None else jax.random.split(key, parts)
  return keys, *split((batch, targets), parts)
