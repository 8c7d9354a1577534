"""Checks that the gradient of a stage reaches a parameter."""

import functools
from typing import Any

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp

from cxjax import errors
from cxjax import types
from cxjax.methods import losses
from cxjax.methods import masks
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib


def check(
  stage: stage_lib.Stage,
  apply: types.Apply,
  params: types.Params,
  batch: types.Batch,
  mask: masks.Mask,
  regressors: dict[str, tuple[int, int]],
) -> None:
  """Checks that the loss of every term has a gradient in a trained parameter.

  Nothing is computed: a gradient that does not depend on what comes back from
  the loss is 0 by construction, as behind a `stop_gradient`.

  Args:
    stage: the stage; its losses fit the shapes.
    apply: the student.
    params: its parameters; shapes are enough.
    batch: shapes of a batch.
    mask: mask of the parameters that the stage trains.
    regressors: shape of the regressor of each term that has one.

  Raises:
    UserError: no gradient of a term reaches a parameter.
  """
  if stage.needs_labels and 'y' not in batch:
    return
  values = functools.partial(_values, stage, apply, regressors)

  def pull(
    params: types.Params, batch: types.Batch, back: list[jax.Array]
  ) -> Any:
    trainable, frozen = masks.split(params, mask)
    whole = lambda trainable: values(masks.merge(trainable, frozen), batch)
    return jax.vjp(whole, trainable)[1](back)

  back = [jax.ShapeDtypeStruct((), jnp.float32) for _ in stage.terms]
  try:
    traced = jax.make_jaxpr(pull)(params, batch, back).jaxpr
  except errors.UserError:
    raise
  except Exception as error:  # A loop, or a kernel, without a gradient.
    reason = str(error).partition('\n')[0].rstrip('.')
    raise errors.UserError(
      f'Stage {stage.name!r} cannot train '
      f'{", ".join(repr(term.student) for term in stage.terms)}: the student '
      f'has no gradient there ({reason}). A loop must have a known length, as '
      'jax.lax.scan has.'
    ) from error
  _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
  for term, reaches in zip(stage.terms, used[-len(stage.terms) :], strict=True):
    errors.require(
      reaches or term.weight == 0,
      f'Stage {stage.name!r} trains no parameter with {term.student!r}: the '
      'gradient of its loss reaches none. Something on the way has no '
      'gradient, as stop_gradient, argmax, rounding or a cast to integers; '
      'take it out, or compare another activation.',
    )


def _values(
  stage: stage_lib.Stage,
  apply: types.Apply,
  regressors: dict[str, tuple[int, int]],
  params: types.Params,
  batch: types.Batch,
) -> list[jax.Array]:
  """A loss of each term, for targets of zeros."""
  found = targets_lib.forward(apply, params, batch['x'])
  total = []
  for name, term in stage.named_terms.items():
    got = targets_lib.compared(found, batch['x'], term.student, term)
    if name in regressors:
      got = got @ jnp.zeros(regressors[name], got.dtype)
    want: types.Target = jnp.zeros_like(got)
    if term.target == stage_lib.LABELS:
      want = jnp.zeros_like(batch['y'])
    elif term.top_k:
      want = losses.top_k(want, term.top_k)
    loss = term.loss(got, want)  # type: ignore[operator, misc]
    total.append(jnp.sum(loss.astype(jnp.float32)))
  return total
