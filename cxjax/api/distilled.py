"""The result of `distill`: students, records, and the step they are of."""

import pathlib
from typing import Any
from typing import NamedTuple

import jax

from cxjax import types
from cxjax.api import plan as plan_lib
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import run_spec
from cxjax.training import trainer


class _Pair(NamedTuple):
  params: Any
  history: list[types.Record]


class Distilled(_Pair):
  """Trained parameters and the history, as a pair that can be unpacked.

  Attributes:
    params: parameters of the student in the form in which it came; of several
      students, a list.
    history: records of 'step', 'stage', 'loss', 'learning_rate' and, where it
      was evaluated, 'eval/...'.
    best_step: with `keep_best`, the step of the evaluation with the best
      metric, whose students these are; otherwise None.
  """

  best_step: int | None = None

  def __repr__(self) -> str:
    """One line: of the parameters and the records, only how many."""
    number = len(self.history)
    last = f' to step {self.history[-1]["step"]}' if number else ''
    records = f'{number} record{"s" if number != 1 else ""}{last}'
    return f'Distilled(params, {records}, best_step={self.best_step})'


def finish(
  plan: plan_lib.Plan,
  spec: run_spec.RunSpec,
  folder: pathlib.Path,
  result: trainer.Result,
) -> Distilled:
  """Gives the parameters of a finished run the form in which they came.

  Args:
    plan: plan that was trained.
    spec: specification of the run.
    folder: folder of the run, with the best checkpoint if one was kept.
    result: result of the run.

  Returns:
    The students as they were best, or else as they ended.
  """
  params = result.params
  if result.best is not None:
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding
      ),
      params,
    )
    found = checkpoints_lib.restore(folder, result.best, {'params': shapes})
    params = found['params']
  students = [
    plan.student.wrap(jax.tree.map(lambda leaf, i=i: leaf[i], params))
    for i in range(spec.num_seeds)
  ]
  params = students if plan.student.several else students[0]
  distilled = Distilled(params, result.records)
  distilled.best_step = result.best
  return distilled
