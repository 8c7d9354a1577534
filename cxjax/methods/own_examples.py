"""The forward pass of a student of which each device has its own examples."""

import functools
from typing import Any

import jax

from cxjax import types
from cxjax.methods import masks
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.parallel import joint_gradients


def activations(
  apply: types.Apply,
  stage: stage_lib.Stage,
  params: types.Params,
  frozen: types.Params,
  x: types.Input,
) -> targets_lib.Activations:
  """The activations that a stage compares, by name.

  Args:
    apply: the student, which computes each example by itself.
    stage: the stage.
    params: parameters that are learned, from `masks.split`.
    frozen: the other ones, whose gradient is 0.
    x: the input.

  Returns:
    The activations, as of `targets.forward`.
  """
  names = {term.student for term in stage.terms}
  split = apply if isinstance(apply, output_split.Split) else None

  def run(params: Any, frozen: Any, x: Any) -> dict[str, jax.Array]:
    found = targets_lib.forward(apply, masks.merge(params, frozen), x)
    return {name: _features(found[name]) for name in names}

  if split is None:
    return joint_gradients.by_example(run, params, frozen, x)
  whole = masks.merge(params, frozen)
  # What the head alone reads has its gradient there.
  pick = lambda leaf, read, of_trunk: leaf if read == of_trunk else None
  learned, beside = (
    jax.tree.map(
      functools.partial(pick, of_trunk=of_trunk),
      params,
      split.reads(whole),
      is_leaf=lambda leaf: leaf is None,
    )
    for of_trunk in (True, False)
  )
  fixed = masks.merge(beside, frozen)
  found: dict[str, Any] = joint_gradients.by_example(run, learned, fixed, x)
  features = found[stage_lib.LOGITS]
  return {**found, stage_lib.LOGITS: split.restorer(whole)(features)}


def _features(found: Any) -> jax.Array:
  return found.features if isinstance(found, output_split.Apart) else found
