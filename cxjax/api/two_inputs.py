"""Examples of a plan that may be `(x, labels)`, or two inputs of the models."""

from typing import Any

import jax

from cxjax import errors
from cxjax import types
from cxjax.data import user_batches
from cxjax.methods import masks
from cxjax.methods import stage as stage_lib
from cxjax.models import adapters
from cxjax.models import calls
from cxjax.parallel import partition


def check(
  given: Any,
  stages: stage_lib.Curriculum,
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  batch: types.Batch,
) -> None:
  """Raises UserError for a pair that the models read as two inputs.

  An optional second argument would get nothing, and its parameters would not be
  trained. A pair is two inputs if both models run on it as such, and one of
  them then reads parameters that x alone does not reach: a flag as `train` or a
  mask has none. Nothing is refused where a stage reads the labels.

  Args:
    given: the example as the user gave it.
    stages: stages of the plan.
    models: teacher and student.
    batch: shapes of the example.
  """
  if not user_batches.is_pair(given) or any(s.needs_labels for s in stages):
    return
  alone = [_read(model, batch['x']) for model in models]
  whole = [
    {partition.leaf_name(path) for path, _ in jax.tree.leaves_with_path(m.one)}
    for m in models
  ]
  if alone == whole:
    return
  pair = calls.Arguments(batch['x'], batch['y'])
  try:
    both = [_read(model, pair) for model in models]
  except Exception:  # A model of one input may raise anything.
    return
  for role, more, less in zip(('teacher', 'student'), both, alone, strict=True):
    extra = sorted(more - less)
    errors.require(
      not extra,
      'The example may be (x, labels), or two inputs: with the second the '
      f'{role} reads {", ".join(extra[:4])}, and without it not. Give labels '
      "as {'x': x, 'y': labels}; give two inputs as one dict by the names of "
      "the model's arguments, as {'x': {'image': ..., 'time': ...}}, also in "
      'the batches.',
    )


def _read(model: adapters.ModelAdapter, x: Any) -> set[str]:
  """Names of the parameters that the output of a model depends on."""
  params, x = jax.eval_shape(lambda tree: tree, (model.one, x))
  mask = masks.dependency_mask(model.apply, params, x, 'logits')
  return {
    partition.leaf_name(path)
    for path, used in jax.tree.leaves_with_path(mask)
    if used
  }
