"""The cause of a loss that is not finite, in one line."""

import pathlib
from typing import Any

import jax
import numpy as np

from cxjax import errors
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets
from cxjax.methods import weights as weights_lib
from cxjax.training import checkpoints
from cxjax.training import run_spec


def explain(
  spec: run_spec.RunSpec,
  stage: stage_lib.Stage,
  folder: pathlib.Path,
  bad: np.ndarray,
  rows: Any,
) -> None:
  """Raises UserError for a loss that is not finite.

  Args:
    spec: of the run.
    stage: that was trained.
    folder: of the run; its checkpoints are written.
    bad: `[S]` first step at which the loss of each seed is not finite.
    rows: `[T, streams, B, ...]`, what the batches were made of, or None.

  Raises:
    UserError: always; it names the batch in which nothing counts, or else the
      seed and the step.
  """
  seed, at = int(bad.argmin()), int(bad.min())
  _check_weights(spec, stage, seed, at, rows)
  good = checkpoints.latest(folder)
  kept = 'none was saved yet' if good is None else f'checkpoint {good}'
  raise errors.UserError(
    f'The loss of seed {seed} is not finite at step {at}, in stage '
    f'{stage.name!r} of {folder}. The last good checkpoint: {kept}. Try a '
    'smaller optimizer.learning_rate, in another workdir.'
  )


def _check_weights(
  spec: run_spec.RunSpec, stage: stage_lib.Stage, seed: int, at: int, rows: Any
) -> None:
  """Raises UserError if nothing in the batch of a step counts."""
  stream = seed % len(spec.keys.data)
  if rows is not None:
    rows = jax.tree.map(lambda leaf: leaf[at % len(leaf), stream], rows)
  batch = jax.jit(spec.batch)(spec.keys.data[stream], at, rows)
  found = jax.eval_shape(
    lambda params, x: targets.forward(spec.student.apply, params, x),
    spec.student_shapes,
    batch['x'],
  )
  for term in stage.terms:
    shape = found[term.student].shape
    weights = weights_lib.loss_weights(batch, term, term.student, shape)
    errors.require(
      weights is None or bool(weights.any()),
      f'The batch of seed {seed} at step {at} has no position that counts in '
      'the loss: none was masked, or all weights are 0. Raise batch_size or '
      'data.mask_rate, or mend the weights.',
    )
