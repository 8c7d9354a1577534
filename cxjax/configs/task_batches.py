"""Checks of what a task of a config makes: its held-out set and its batches."""

from collections.abc import Mapping
import functools
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import ml_collections

from cxjax import errors
from cxjax import types
from cxjax.data import labels as labels_lib
from cxjax.data import user_batches
from cxjax.tasks import base as tasks
from cxjax.training import memory

Config: TypeAlias = ml_collections.ConfigDict
PARTS = ('x', 'y')


def held_out(config: Config, task: tasks.Task, key: jax.Array) -> types.Batch:
  """Draws the held-out set of a task.

  Args:
    config: config of the experiment.
    task: its task.
    key: typed PRNG key of the set.

  Returns:
    The batch.

  Raises:
    UserError: it does not fit into memory, has no `x` or no labels, or has
      labels that are none of the classes, or weights that are negative.
  """
  what = f'The held-out set of the task {config.task!r}'
  draw = functools.partial(task.held_out, size=config.data.eval_size)
  if task.host_spec(1) is None:  # Texts are read only as far as they go.
    memory.require_drawn('data.eval_size', jax.eval_shape(draw, key))
  found = draw(key)
  _require_parts(found, what)
  read = {n: found[n] for n in ('y', 'weights') if n in found}
  with errors.about(what):
    batch = {**found, **jax.device_get(read)}
    user_batches.check_weights(batch)
    y, classes = batch['y'], task.num_classes
    if jnp.issubdtype(y.dtype, jnp.integer):
      labels_lib.checked(batch, classes, soft=False)
    # Terms of one's own may compare real numbers.
    elif y.shape[-1:] == (classes,) and config.method != 'custom':
      labels_lib.checked(batch, classes, soft=True)
  return found


def check(config: Config, task: tasks.Task) -> None:
  """Checks that batches have the size that a config asks for.

  Args:
    config: config of the experiment.
    task: its task.

  Raises:
    UserError: such batches cannot be made, or have another size.
  """
  for size in (config.batch_size, config.teacher.batch_size):
    task.check(size)
    if task.host_spec(size) is not None:
      continue
    draw = lambda key, size=size: task.batch(key, 0, size)
    found = jax.eval_shape(draw, jax.random.key(0))
    what = f'A batch of the task {config.task!r}'
    _require_parts(found, what)
    for leaf in jax.tree.leaves(found):
      errors.require(
        leaf.shape[:1] == (size,),
        f'{what} has an array of shape {list(leaf.shape)}, and batch_size is '
        f'{size}: make as many examples as it is asked for.',
      )


def _require_parts(batch: Any, what: str) -> None:
  """Raises UserError unless a batch is a dict with inputs and labels."""
  is_dict = isinstance(batch, Mapping)
  found = f'dict of {list(batch)}' if is_dict else type(batch).__name__
  errors.require(
    is_dict and set(PARTS) <= set(batch) and hasattr(batch['y'], 'dtype'),
    f"{what} is a {found}: it must be a dict of 'x', the input, and 'y', an "
    'array of labels.',
  )
