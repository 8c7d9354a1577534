"""Evaluation of the students of a plan on a held-out set."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import types
from cxjax.api import matching
from cxjax.api import output_losses
from cxjax.api import plan as plan_lib
from cxjax.api import stages as stages_lib
from cxjax.data import conform
from cxjax.data import held_out_batches
from cxjax.data import labels as labels_lib
from cxjax.data import reader_thread
from cxjax.data import token_ids
from cxjax.data import user_batches
from cxjax.data import user_loader
from cxjax.methods import losses
from cxjax.methods import microbatches
from cxjax.methods import output_pieces
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import probabilities
from cxjax.training import evaluation as evaluation_lib
from cxjax.training import metric_sums
from cxjax.training import metrics as metrics_lib
from cxjax.training import output_memory
from cxjax.training import run_spec

# Default metrics of logits with labels.
METRICS = ('accuracy', 'loss')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The held-out set of a plan, and its metrics.

  Attributes:
    held_out: one batch, with the labels or the teacher's output as 'y'; without
      'y' where that output is too large to be kept.
    metrics: metrics by name; the first decides.
    by_labels: whether 'y' are the labels.
    convert: function that makes a batch of what the user gives.
    read: the held-out set as one batch that the user could have given.
  """

  held_out: types.Batch
  metrics: dict[str, metrics_lib.Metric]
  by_labels: bool
  convert: Callable[[Any], types.Batch]
  read: types.Batch

  @property
  def counted(self) -> dict[str, Any]:
    """The weights of the examples and the mask of their tokens, if any."""
    x, weights = self.held_out['x'], self.held_out.get('weights')
    mask = x.get('mask') if isinstance(x, Mapping) else None
    return jax.device_get({'weights': weights, 'mask': mask})


def evaluation(
  plan: plan_lib.Plan,
  held_out: Any,
  what: str,
  metrics: Any,
  thread: reader_thread.ReaderThread | None = None,
) -> Evaluation:
  """Decides how the students of a plan are evaluated.

  Args:
    plan: plan that is trained.
    held_out: a batch as the user gives it, or several (`held_out_batches`).
    what: name of the held-out set in error messages.
    metrics: names or functions, as for `metrics.resolve`; None chooses.
    thread: where a loader is read; None is one of its own.

  Returns:
    The evaluation.

  Raises:
    UserError: a batch that is not like those of the plan, or metrics that do
      not make one value per example.
  """
  shapes = _shapes(plan, held_out, metrics)
  # Without labels that are classes, the teacher's output is the reference.
  last = plan.stages[-1:]
  by_labels = 'y' in shapes and (
    _is_kl(plan)
    or stages_lib.reads_classes(last)
    or not any(stage.needs_teacher for stage in last)
    or _reads_labels(metrics)
  )
  needed = ('x', 'y') if by_labels else ('x',)
  classes, soft = _classes(plan, metrics)
  convert = functools.partial(
    user_batches.checked, classes=classes, soft=soft, ids=_ids(plan)
  )
  read = held_out_batches.read(held_out, shapes, needed, convert, what, thread)
  batch = plan.with_mask(jax.tree.map(jnp.array, read))
  _check_not_nan(plan, jax.device_get(batch), needed, what)
  if by_labels and not metrics:
    labels_lib.check(plan.student, shapes)
  defaults = metrics_lib.resolve(_default_metrics(plan, by_labels))
  chosen = output_losses.added(defaults, plan, batch['x'], by_labels)
  if metrics:
    chosen = metrics_lib.resolve(metrics)
  _require_logits(plan, chosen)
  first = {name: one for name, one in chosen.items() if not one.output}
  # A function of the user takes whatever reference there is.
  if by_labels or (metrics and not isinstance(metrics, Mapping)):
    metrics_lib.require_reference(first, 'labels' if by_labels else 'teacher')
  batch, references = _with_teacher(plan, batch, chosen, by_labels)
  if by_labels:
    references[stage_lib.LOGITS] = batch['y']
  outputs = matching.shapes(plan.student, batch['x'])
  for name, metric in metric_sums.apart(chosen)[0].items():
    at = targets_lib.output_name(metric.output)
    both = outputs[at], references[at]
    evaluation_lib.check({name: metric}, metric.output, *both, batch)
  return Evaluation(batch, chosen, by_labels, convert, read)


def _shapes(plan: plan_lib.Plan, held_out: Any, metrics: Any) -> types.Batch:
  """Shapes of a batch; with labels that only the held-out set has, if read."""
  if 'y' in plan.batch or not _reads_labels(metrics):
    return plan.batch
  found = held_out_batches.labels(held_out, plan.batch)
  return plan.batch if found is None else {**plan.batch, 'y': found}


def _is_softmax(plan: plan_lib.Plan, role: str, name: str = 'logits') -> bool:
  """True if an output of a model is probabilities."""
  if name in dict(probabilities.read(plan.stages, role)):
    return False  # `plan` refuses it.
  model = {'teacher': plan.teacher, 'student': plan.student}[role]
  x = targets_lib.without_dropout(plan.batch['x'])
  return probabilities.ends(model.apply, model.one, x)(name) == 'softmax'


def _require_logits(
  plan: plan_lib.Plan, metrics: Mapping[str, metrics_lib.Metric]
) -> None:
  """Raises UserError for a metric that would read probabilities as logits."""
  for name, metric in metrics.items():
    if not metrics_lib.reads_logits(metric):
      continue
    at = targets_lib.output_name(metric.output)
    roles = ('student', 'teacher')[: 1 + (metric.reference == 'teacher')]
    for role in roles:
      errors.require(
        not _is_softmax(plan, role, at),
        f'The metric {name!r} reads logits, and the output of the {role} is '
        f'probabilities, the result of a softmax. {probabilities.LOGITS} Or '
        'leave the metric out.',
      )


def _reads_labels(metrics: Any) -> bool:
  """True if the metrics of a user compare an output with the labels."""
  chosen = metrics_lib.resolve(metrics) if metrics else {}
  return any(
    one.reference == 'labels' and not one.output for one in chosen.values()
  )


def _check_not_nan(
  plan: plan_lib.Plan, batch: types.Batch, needed: tuple[str, ...], what: str
) -> None:
  """Raises UserError for NaN in labels, and in inputs that become outputs."""
  bad = user_batches.nan_examples(batch['x'], batch)
  if bad.any():  # A model may know missing values.
    x = targets_lib.without_dropout(batch['x'])
    x = jax.tree.map(lambda leaf: jnp.array(leaf[bad]), x)
    models = {'student': plan.student, 'teacher': plan.teacher}
    outputs = [model.apply(model.one, x)[0] for model in models.values()]
    if not any(bool(jnp.isnan(output).any()) for output in outputs):
      bad[:] = False
  if 'y' in needed:
    bad |= user_batches.nan_examples(batch['y'], batch)
  errors.require(
    not bad.any(),
    f'{what} has NaN in {bad.sum()} of {len(bad)} examples, the first of them '
    f"is example {bad.argmax()}. Remove them, or give them 'weights' of 0.",
  )


def _ids(plan: plan_lib.Plan) -> token_ids.Ids:
  """The token ids that both models read."""
  with_mask = None if plan.padding is None else plan.with_mask
  return token_ids.Ids(token_ids.size_of(plan.teacher, plan.student), with_mask)


def _is_kl(plan: plan_lib.Plan) -> bool:
  """True if outputs are compared as logits."""
  return plan.loss in losses.LOGIT_LOSSES and plan.loss != 'mse'


def _classes(plan: plan_lib.Plan, metrics: Any) -> tuple[int | None, bool]:
  """Number of classes, if labels are read as such; whether they are soft."""
  read = stages_lib.reads_classes(plan.stages) or (_is_kl(plan) and not metrics)
  if 'y' not in plan.batch or not read:
    return None, False
  output, _ = adapters.outputs(plan.student, plan.batch['x'], 'student')
  return output.shape[-1], labels_lib.is_soft(plan.batch['y'], output)


def _default_metrics(plan: plan_lib.Plan, by_labels: bool) -> Any:
  """The metrics of a plan that is given none."""
  if by_labels:  # The cross entropy is of logits.
    return ('accuracy',) if _is_softmax(plan, 'student') else METRICS
  output = output_losses.first_term(plan)
  loss: Any = output.loss if output is not None else losses.kl
  rowwise = output_pieces.is_rowwise(loss)
  lower = lambda fun: metrics_lib.Metric(
    fun, reference='teacher', higher_is_better=False, rowwise=rowwise
  )
  if _is_kl(plan):
    if output is not None and output.top_k:
      few, k = loss, output.top_k
      loss = lambda got, want: few(got, losses.top_k(want, k))
    agreement = metrics_lib.METRICS['agreement']
    return {'agreement': agreement, 'loss': lower(loss)}
  if plan.loss == 'cosine':
    cosine = lambda got, want: 1 - losses.cosine(got, want)
    cosine = metrics_lib.Metric(cosine, reference='teacher')
    return {'cosine': cosine, 'loss': lower(loss)}
  return {'loss': lower(loss)}


def _with_teacher(
  plan: plan_lib.Plan,
  held_out: types.Batch,
  metrics: Mapping[str, metrics_lib.Metric],
  by_labels: bool,
) -> tuple[types.Batch, dict[str, Any]]:
  """A batch with the outputs of the teacher that metrics read.

  The output that the last stage learns first is 'y'; others have their names.
  Outputs that are too large to be kept are computed at every evaluation; the
  batch then has none of them, and no 'y'. Metrics of outputs that can neither
  be kept nor, beside labels, be computed again are an error.

  Args:
    plan: plan that is trained.
    held_out: the batch.
    metrics: metrics of the evaluation, by name.
    by_labels: whether 'y' are the labels.

  Returns:
    The batch; the shapes of the outputs, by the name of the activation.
  """
  x, mark = held_out['x'], stage_lib.OUTPUT
  outputs = matching.shapes(plan.teacher, x)
  known = {n.removeprefix(mark): n for n in outputs if n.startswith(mark)}
  names = {} if by_labels else {'y': stage_lib.LOGITS}
  for path in (metric.output for metric in metrics.values() if metric.output):
    name = errors.lookup('output', path, known)
    names[name] = name
  found = {name: outputs[name] for name in names.values()}
  if not names:
    return held_out, {}
  if any(output_pieces.is_large(o.shape) for o in found.values()):
    errors.require(
      not by_labels,
      f'{", ".join(names)} of the teacher is too large to be kept for the '
      'evaluation: give fewer held_out examples, or metrics without it.',
    )
    return {n: leaf for n, leaf in held_out.items() if n != 'y'}, found

  parts = -(-run_spec.num_rows(x) // output_memory.EVAL_ROWS)

  def forward(params: types.Params, x: types.Input) -> dict[str, jax.Array]:
    """The outputs by their keys in the batch."""

    def one(x: types.Input) -> dict[str, jax.Array]:
      made = targets_lib.forward(plan.teacher.apply, params, x)
      return {key: made[name] for key, name in names.items()}

    return microbatches.apply(one, targets_lib.without_dropout(x), parts)

  return {**held_out, **jax.jit(forward)(plan.teacher.params, x)}, found


def of_run(
  plan: plan_lib.Plan,
  batches: Any,
  user: user_loader.UserLoader,
  first: Callable[[], Any],
  held_out: Any,
  metrics: Any,
) -> Evaluation:
  """The evaluation of a run: on `held_out`, or else on the first batch.

  Args:
    plan: plan of the run.
    batches: training batches, as the user gives them.
    user: their loader.
    first: returns the first of them.
    held_out: held-out set, as the user gives it, or None.
    metrics: metrics, as the user gives them.

  Returns:
    The held-out set, and the metrics.

  Raises:
    UserError: the iterator of the batches is the held-out set too.
  """
  errors.require(
    held_out is None
    or held_out is not batches
    or not hasattr(batches, '__next__'),
    'held_out is the iterator that the batches come from: it would leave none '
    'for training. Give an iterator of its own.',
  )
  what = 'held_out'
  if held_out is None:
    what, held_out = 'the first batch', first()
    with conform.reported(what):
      held_out = user_batches.to_batch(held_out)
  return evaluation(plan, held_out, what, metrics, user.thread)
