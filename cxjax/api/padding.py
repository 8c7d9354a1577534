"""Padding by a function of the batch, for all stages and the evaluation.

The mask travels in the input, as 'mask', where losses, pooling and metrics find
it; the models are wrapped so that they do not see it.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import TypeAlias

from absl import logging
import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.data import token_ids
from cxjax.methods import weights as weights_lib
from cxjax.models import adapters

# From a batch, a dict of 'x' and, if it has them, 'y' and 'weights', to `[B,
# L]` of its tokens, or `[B]` of its examples; True or 1 counts.
Mask: TypeAlias = Callable[[types.Batch], Any]
# Key of an input's own 'mask', which its model reads.
OWN = '_mask'


@dataclasses.dataclass(frozen=True)
class Padding:
  """Which tokens or examples of a batch count.

  Attributes:
    mask: the function of the user.
    axes: axes of the output of one batch, without its width.
    size: number of token ids that the models read; None if that is not known.
    classes: width of the output.
  """

  mask: Mask
  axes: tuple[int, ...]
  size: int | None = None
  classes: int = 0

  def __call__(self, batch: types.Batch) -> types.Batch:
    """Returns the batch with its mask in 'x', or in 'weights'.

    Inputs that do not count are numbers in it, and ids that the models know;
    integer labels that do not count are classes.
    """
    marked = self._with_classes(self._with_mask(batch))
    # Of those that count all are known (`token_ids`).
    known = token_ids.known(marked['x'], self.size)
    return weights_lib.cleared_input({**marked, 'x': known})

  def _with_classes(self, batch: types.Batch) -> types.Batch:
    """Sets labels that do not count and are no classes, as -100, to 0."""
    y = batch.get('y')
    if y is None or not jnp.issubdtype(y.dtype, jnp.integer):
      return batch
    if y.shape[1:] != self.axes[1:] or y.ndim != len(self.axes):
      return batch
    counts = weights_lib.output_weights(batch, (*y.shape, self.classes))
    if counts is None or counts.shape != y.shape:
      return batch
    left_out = (counts == 0) & ((y < 0) | (y >= self.classes))
    return {**batch, 'y': jnp.where(left_out, jnp.zeros_like(y), y)}

  def _with_mask(self, batch: types.Batch) -> types.Batch:
    mask = jnp.asarray(self.mask(batch)).astype(jnp.float32)
    weights = batch.get('weights')
    size = len(mask)
    if mask.ndim == 1:
      each = mask.reshape(size, *[1] * (len(self.axes) - 1))
      whole = jnp.ones((size, *self.axes[1:]), jnp.float32)
      if weights is not None:
        whole, each = weights, mask.reshape(size, *[1] * (weights.ndim - 1))
      x = _input_without_mask(batch['x'])
      return {**batch, 'x': x, 'weights': whole * each}
    found = {**batch, 'x': _input_with_mask(batch['x'], mask)}
    # Those of examples stay so: hidden activations count by them as well.
    if weights is None or weights.ndim < mask.ndim:
      return found
    if mask.shape[1:] == self.axes[1:]:
      found['weights'] = weights * mask
    return found


def _input_with_mask(x: types.Input, mask: jax.Array) -> dict[str, Any]:
  """An input with a mask beside it."""
  if not isinstance(x, Mapping):
    return {'tokens': x, 'mask': mask}
  own = {OWN: x['mask']} if 'mask' in x else {}
  return {**x, **own, 'mask': mask}


def _input_without_mask(x: types.Input) -> types.Input:
  """An input whose own mask the model alone reads."""
  if not isinstance(x, Mapping) or 'mask' not in x:
    return x
  rest = {name: leaf for name, leaf in x.items() if name != 'mask'}
  return {**rest, OWN: x['mask']}


def _seen(x: types.Input, example: types.Input) -> types.Input:
  """The input as a model reads it; one without a mask as it is."""
  if not isinstance(x, Mapping) or not {'mask', OWN} & set(x):
    return x
  rest = {name: leaf for name, leaf in x.items() if name not in ('mask', OWN)}
  if isinstance(example, Mapping):
    if 'mask' in example:
      return {**rest, 'mask': x[OWN]} if OWN in x else x
    return rest
  return rest if len(rest) > 1 else rest['tokens']  # Dropout has keys.


def unseen(
  model: adapters.ModelAdapter, example: types.Input
) -> adapters.ModelAdapter:
  """The model, which does not see the mask of `Padding`.

  Args:
    model: the model.
    example: an input of the user, or its shapes.

  Returns:
    A model of inputs with the mask, and of inputs without.
  """

  def apply(params: types.Params, x: types.Input) -> Any:
    return model.apply(params, _seen(x, example))

  def training(params: types.Params, x: types.Input, key: jax.Array) -> Any:
    assert model.training is not None
    return model.training(params, _seen(x, example), key)

  return dataclasses.replace(
    model, apply=apply, training=model.training and training
  )


def applied(
  mask: Any,
  batch: types.Batch,
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
) -> tuple[
  Padding | None,
  types.Batch,
  tuple[adapters.ModelAdapter, adapters.ModelAdapter],
]:
  """The argument `mask` of `plan`, and what it makes of a batch and models.

  Args:
    mask: a function of the batch, or None.
    batch: shapes of a batch.
    models: teacher and student.

  Returns:
    The padding, or None; shapes of the batch with its mask; and the models,
    which do not see it.

  Raises:
    UserError: it is no function, does not run on the batch, or makes no mask of
      its examples or tokens.
  """
  teacher, student = models
  padding = _received(mask, batch, models)
  if padding is None:
    return None, batch, models
  both = unseen(teacher, batch['x']), unseen(student, batch['x'])
  return padding, jax.eval_shape(padding, batch), both


def weighted(plan: Any) -> Any:
  """A `Plan` with weights in its batches, of which padding has 0."""
  if 'weights' in plan.batch:
    return plan
  output, _ = adapters.outputs(plan.student, plan.batch['x'], 'student')
  weights = jax.ShapeDtypeStruct(output.shape[:-1], jnp.float32)
  return dataclasses.replace(plan, batch={**plan.batch, 'weights': weights})


def _received(
  mask: Any,
  batch: types.Batch,
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
) -> Padding | None:
  """The padding of a function, which is checked on the batch."""
  x, (_, student) = batch['x'], models
  if mask is None:
    if isinstance(x, Mapping) and 'attention_mask' in x and 'mask' not in x:
      logging.warning(
        "The input has 'attention_mask', and the plan has no mask: padding is "
        "compared like tokens. Give mask=lambda batch: batch['x']"
        "['attention_mask']."
      )
    return None
  arguments.function('mask', mask, "lambda batch: batch['x'] != 0")
  try:
    found = jax.eval_shape(lambda batch: jnp.asarray(mask(batch)), batch)
  except Exception as error:  # Whatever a function of the user raises.
    reason = str(error).partition('\n')[0].rstrip('.')
    raise errors.UserError(
      f'mask does not run on a batch of {", ".join(batch)}: '
      f'{type(error).__name__}: {reason}. It gets the dict of a batch, as in '
      "lambda batch: batch['x'] != 0, and must use jax.numpy."
    ) from error
  output, _ = adapters.outputs(student, x, 'student')
  size = jax.tree.leaves(x)[0].shape[0]
  errors.require(
    found.ndim > 0
    and found.shape[0] == size
    and not jnp.issubdtype(found.dtype, jnp.complexfloating),
    f'mask makes {found.dtype}{list(found.shape)} of a batch of {size}: it '
    'must make [B, tokens], True for each that counts, or [B] of examples.',
  )
  size, axes = token_ids.size_of(*models), output.shape[:-1]
  return Padding(mask, axes, size, output.shape[-1])
