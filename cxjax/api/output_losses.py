"""Held-out losses of the outputs of a plan, each and their weighted sum."""

from collections.abc import Container
from collections.abc import Mapping

from absl import logging

from cxjax import types
from cxjax.api import matching
from cxjax.api import plan as plan_lib
from cxjax.methods import output_pieces
from cxjax.methods import stage as stage_lib
from cxjax.training import metric_sums
from cxjax.training import metrics as metrics_lib


def first_term(plan: plan_lib.Plan) -> stage_lib.Term | None:
  """The term of the main output that the last stage learns first, if any."""
  terms = plan.stages[-1].terms
  return next((t for t in terms if t.target == stage_lib.LOGITS), None)


def added(
  defaults: Mapping[str, metrics_lib.Metric],
  plan: plan_lib.Plan,
  x: types.Input,
  by_labels: bool,
) -> dict[str, metrics_lib.Metric]:
  """The default metrics of a plan, with the losses of all outputs.

  Args:
    defaults: those of the labels, or of the output that is learned first.
    plan: plan that is trained.
    x: shapes of the held-out set.
    by_labels: whether the teacher is not run at an evaluation.

  Returns:
    Metrics by name. Without labels 'loss' comes first: the sum of the others
    of the last stage, with their weights at its end.
  """
  first = first_term(plan)
  main = f'loss/{first and first.name or stage_lib.LOGITS}'
  reserved = () if first is None or by_labels else (main,)
  others: dict[str, metrics_lib.Metric] = {}
  weights: dict[str, float] = {}
  for term in plan.stages[-1].terms:
    if term is first or not _is_output(term, by_labels):
      continue
    path = term.student.removeprefix(stage_lib.OUTPUT)
    shape = matching.shapes(plan.teacher, x)[term.student].shape
    if by_labels and output_pieces.is_large(shape):
      logging.warning(
        'The held-out loss of the output %r is left out: the teacher is too '
        'large there to be kept.',
        path,
      )
      continue
    is_main = term.student == stage_lib.LOGITS
    names = (term.name, path) if is_main else (path, term.name)
    name = _free((*reserved, *others), *names)
    others[name] = metrics_lib.Metric(
      term.loss,  # type: ignore[arg-type]
      reference='teacher',
      higher_is_better=False,
      output='' if is_main else path,
    )
    weights[name] = float(term.weight_at(1.0))
  if by_labels or not others:
    return {**defaults, **others}
  found = {name: m for name, m in defaults.items() if name != 'loss'}
  if first is None:
    found = {}
  else:
    found[main] = defaults['loss']
    weights = {main: float(first.weight_at(1.0)), **weights}
  return {'loss': metric_sums.weighted(weights), **found, **others}


def _is_output(term: stage_lib.Term, by_labels: bool) -> bool:
  """True for a term that compares an output as it is."""
  at = term.student
  plain = stage_lib.Term(at, at, term.loss, weight=term.weight, name=term.name)
  if at == stage_lib.LOGITS:  # The labels judge it where there are any.
    return term == plain and not by_labels
  return term == plain and at.startswith(stage_lib.OUTPUT)


def _free(taken: Container[str], *names: str | None) -> str:
  """The first name of a loss that is not taken, or the last with a number."""
  known = [f'loss/{name}' for name in names if name]
  more = (f'{known[-1]}_{number}' for number in range(2, 1_000))
  return next(name for name in (*known, *more) if name not in taken)
