"""Earlier checkpoints of a teacher, for progressive distillation."""

from collections.abc import Mapping
import dataclasses

import jax

from cxjax import arguments
from cxjax import errors
from cxjax.models import adapters

EXAMPLE = '{1_000: cxjax.from_linen(module, earlier)}'


def with_checkpoints(
  teacher: adapters.ModelAdapter,
  checkpoints: Mapping[int, adapters.ModelAdapter],
) -> adapters.ModelAdapter:
  """A teacher with its earlier checkpoints.

  A plan of stages like those of `cxjax.progressive((1_000, 4_000, None), ...)`
  then learns from each of them, and `cxjax.compare` takes the method
  'progressive', with all of them.

  Args:
    teacher: the finished teacher.
    checkpoints: the same model with earlier parameters, by the step at which
      they were saved. The function that runs is the teacher's own. Keras names
      the variables of a second model otherwise: load the earlier weights into
      the same model, and wrap it once with each.

  Returns:
    The teacher.

  Raises:
    UserError: a step is no whole number, a checkpoint is no such model, or its
      parameters have other names, shapes or dtypes than the teacher's.

  References:
    Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464.
  """
  _check(teacher, 'The teacher')
  errors.require(
    isinstance(checkpoints, Mapping) and len(checkpoints) > 0,
    lambda: (
      f'checkpoints={checkpoints!r} must be a dict by steps, as {EXAMPLE}.'
    ),
  )
  form = lambda tree: jax.tree.map(
    lambda leaf: (leaf.shape, str(leaf.dtype)), arguments.shapes('params', tree)
  )
  found = {}
  for given, model in checkpoints.items():
    step = arguments.integer('The step of a checkpoint', given, 0, 2**31 - 1)
    _check(model, f'The checkpoint {step}')
    errors.require(
      form(model.params) == form(teacher.params),
      f'The parameters of the checkpoint {step} have other names, shapes or '
      "dtypes than the teacher's. Give the same model at an earlier step.",
    )
    found[step] = model.params
  return dataclasses.replace(teacher, checkpoints=dict(sorted(found.items())))


def _check(model: adapters.ModelAdapter, what: str) -> None:
  """Raises UserError unless `model` is one model with one set of parameters."""
  errors.require(
    isinstance(model, adapters.ModelAdapter),
    f'{what} is a {type(model).__name__}, not a ModelAdapter: checkpoints are '
    f'given as {EXAMPLE}.',
  )
  errors.require(
    not model.several, f'{what} is a list of models: give it one set of params.'
  )
