"""Distillation of any two networks: the training of a plan.

What `launch.py` runs from a config runs here from arguments: the same stages,
the same step, the same loop.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import functools
import inspect
import math
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax.data import user_batches
from cxjax.training import checkpoints as checkpoints_lib
from cxjax import errors
from cxjax.training import evaluation
from cxjax.data import loader
from cxjax import files
from cxjax.training import metric_log
from cxjax.methods import losses
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import curricula
from cxjax.models import adapters
from cxjax.training import optimizers
from cxjax.api import plan as plan_lib
from cxjax.training import run_spec
from cxjax.methods import train_step
from cxjax.training import trainer

# Bytes of the batches that lie on the devices at once.
AHEAD = 64e6
MESH = (*mesh_lib.AXES, 'student', 'teacher')


def distill(
  plan: plan_lib.Plan,
  batches: Iterable[Any],
  *,
  held_out: Any = None,
  optimizer: optax.GradientTransformation | None = None,
  learning_rate: float = 1e-3,
  seed: int = 0,
  workdir: str | pathlib.Path | None = None,
  save_every: int | None = None,
  log_every: int | None = None,
  eval_every: int | None = None,
  metrics: evaluation.Metrics | None = None,
  microbatches: int = 1,
  mesh: Mapping[str, Any] | None = None,
) -> tuple[Any, list[metric_log.Row]]:
  """Trains the student, or several at once, as planned.

  Args:
    plan: of `cxjax.plan`.
    batches: inputs or `(x, labels)`, as the example of the plan: a list, a data
      loader, anything that can be iterated, again and again if it ends. A run
      that goes on passes over what it has seen; an iterator with `get_state`
      and `set_state` (grain's) is set there at once.
    held_out: such a batch, of any number of examples, to evaluate on; without
      it the first of `batches`.
    optimizer: of optax; its state begins afresh with every stage. Without it
      Adam, with a cosine schedule over each stage.
    learning_rate: of that schedule, at its peak.
    seed: of the random projections and readouts.
    workdir: keeps checkpoints, metrics and events for TensorBoard there; the
      same call goes on from the last checkpoint. Without it nothing is kept.
    save_every: steps between checkpoints; a tenth of the steps without it.
    log_every: steps to a row of the history, and batches that are put on the
      devices at once; up to 100 without it.
    eval_every: steps between evaluations; a tenth of the steps without it.
    metrics: `(output, y) -> [...]` by name; `y` are the labels, if there are
      any and outputs are logits, else the teacher's output. Without them the
      loss, and of logits 'accuracy' with the labels or 'agreement' with the
      teacher, of embeddings 'cosine'.
    microbatches: parts of a batch, one after the other, to save memory.
    mesh: devices along 'data', 'fsdp' and 'model', and how 'student' and
      'teacher' are parted, as in `c.mesh` of a config; all devices along 'data'
      without it.

  Returns:
    The parameters in the form that the student came in (of several, a list),
    and the history: rows of 'step', 'stage', 'loss' and, where it was
    evaluated, 'eval/...', a list with a number for each student.

  Raises:
    UserError: batches of other shapes than the example's, a loss that is not
      finite, or a workdir of another run.
    Stopped: the process was asked to stop; the run is saved.
  """
  for name, steps in (
    ('log_every', log_every),
    ('save_every', save_every),
    ('eval_every', eval_every),
  ):
    errors.require(
      steps is None or errors.whole(name, steps) >= 1,
      f'{name}={steps} must be at least 1.',
    )
  errors.require(
    optimizer is None or hasattr(optimizer, 'update'),
    f'optimizer={optimizer!r} must be one of optax, as optax.adam(1e-3).',
  )
  try:
    learning_rate = float(learning_rate)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'learning_rate={learning_rate!r} must be a number. Give a schedule to '
      'an optimizer, as optimizer=optax.adam(schedule).'
    ) from error
  errors.require(
    hasattr(batches, '__iter__') or hasattr(batches, '__getitem__'),
    f'The batches are a {type(batches).__name__}: give something that can be '
    'iterated, as a list.',
  )
  errors.require(
    errors.whole('seed', seed) >= 0, f'seed={seed} must not be negative.'
  )
  students = plan.student.params if plan.student.several else [plan.student.one]
  start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *students)
  num_steps = sum(stage.steps for stage in plan.stages)
  tenth = max(num_steps // 10, 1)
  shapes = plan.batch
  if log_every is None:
    size = sum(
      math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes)
    )
    log_every = int(min(100, tenth, max(AHEAD // size, 1)))
  multiple = lambda steps: max(steps // log_every, 1) * log_every
  batch_size = jax.tree.leaves(shapes)[0].shape[0]
  for name in mesh or {}:
    errors.lookup('mesh', name, dict.fromkeys(MESH))
  sizes = {'data': -1, 'student': 'fsdp', 'teacher': 'fsdp', **(mesh or {})}
  devices = mesh_lib.make(sizes, batch_size)
  labelled = 'y' in shapes
  # Else by what the teacher says.
  by_labels = labelled and (_logits(plan) or not plan.stages[-1].needs_teacher)
  what = 'held_out'
  if held_out is None:
    batches = user_batches.Peeked(batches)
    what, held_out = 'the first batch', batches.first
  needed = ('x', 'y') if by_labels else ('x',)
  convert = functools.partial(
    user_batches.checked, classes=_classes(plan, metrics)
  )
  held_out = user_batches.held_out(convert(held_out), shapes, needed, what)
  if by_labels and not metrics:
    user_batches.check_labels(plan.student, shapes)
  chosen = metrics or _metrics(plan, by_labels)
  keys = jax.random.split(jax.random.key(seed), 2)
  stage_keys = jax.vmap(jax.random.fold_in, (None, 0))(
    keys[0], jnp.arange(len(students))
  )
  small: dict[str, Any] = {
    'held_out': held_out if by_labels else _judged(plan, held_out),
    'stage_keys': stage_keys,
    'init_keys': stage_keys,
    'data_keys': keys[1:],
  }
  spec = run_spec.RunSpec(
    student=plan.student,
    teacher=curricula.Teacher(plan.teacher.apply, plan.teacher.params, ()),
    stages=plan.stages,
    start=start,
    draw=lambda key, at, rows: (
      rows if labelled else {**rows, 'y': user_batches.no_labels(rows)}
    ),
    rows=shapes,
    feed=lambda: loader.Feed(
      [[loader.Stream(batches, shapes, convert, num_steps)]],
      log_every,
      devices,
      shapes,
    ),
    batch_size=batch_size,
    optimizer=_optimizer(optimizer, learning_rate),
    metrics=chosen,
    teacher_metrics=evaluation.TEACHER_METRICS if by_labels else {},
    mesh=devices,
    rules=(sizes['student'], sizes['teacher']),
    log_every=log_every,
    eval_every=multiple(eval_every or tenth),
    save_every=multiple(save_every or (tenth if workdir else num_steps)),
    stop_at=math.inf,
    lookahead=1,
    microbatches=microbatches,
    **mesh_lib.replicate(small, devices),
  )
  if workdir is None:
    with tempfile.TemporaryDirectory() as folder:
      result = trainer.fit(spec, pathlib.Path(folder), 'distill')
  else:
    folder = pathlib.Path(workdir)
    rate = learning_rate if optimizer is None else 'of the optimizer'
    identity = _identity(plan, spec, seed)
    files.claim_workdir(folder, {**identity, 'learning_rate': rate})
    result = trainer.fit(spec, folder, folder.name)
  params = [
    plan.student.wrap(jax.tree.map(lambda leaf, i=i: leaf[i], result.params))
    for i in range(len(students))
  ]
  return params if plan.student.several else params[0], result.rows


def _classes(plan, metrics):
  """How many classes the labels may name, if they are read as such."""
  used = any(s.alpha or not s.needs_teacher for s in plan.stages)
  if 'y' not in plan.batch or not (used or (_logits(plan) and not metrics)):
    return None
  output, _ = adapters.outputs(plan.student, plan.batch['x'], 'student')
  return output.shape[-1]


def _logits(plan):
  return plan.loss in losses.LOGIT_LOSSES and plan.loss != 'mse'


def _metrics(plan, by_labels) -> evaluation.Metrics:
  """What a plan is judged by."""
  if by_labels:
    return evaluation.LABEL_METRICS
  last = plan.stages[-1]
  if _logits(plan):
    loss = last.loss
    if last.top_k:
      loss = lambda got, want: last.loss(got, losses.top_k(want, last.top_k))
    return {'agreement': evaluation.TEACHER_METRICS['agreement'], 'loss': loss}
  if plan.loss == 'cosine':
    cosine = lambda got, want: 1 - losses.cosine(got, want)
    return {'cosine': cosine, 'loss': last.loss}
  return {'loss': last.loss}


def _judged(plan, held_out):
  """A batch whose labels are the teacher's output."""
  see = lambda params, x: plan.teacher.apply(params, train_step.without_dropout(x))[0]
  return {**held_out, 'y': jax.jit(see)(plan.teacher.params, held_out['x'])}


def _optimizer(optimizer, learning_rate) -> Callable:
  if optimizer is not None:
    return lambda length=1, offset=0: optimizer
  config = optimizers.default()
  config.learning_rate, config.schedule = learning_rate, 'cosine'
  return functools.partial(optimizers.make, config)


def _identity(plan, spec, seed) -> dict[str, Any]:
  """What a run depends on, for its `config.json`."""
  described = [
    {
      field.name: _describe(getattr(stage, field.name))
      for field in dataclasses.fields(stage)
    }
    for stage in plan.stages
  ]
  return {
    'seed': seed,
    'stages': described,
    'batch': jax.tree.map(str, plan.batch),
    'teacher': checkpoints_lib.fingerprint(plan.teacher.params),
    'student': checkpoints_lib.fingerprint(spec.start),
    'log_every': spec.log_every,
    'microbatches': spec.microbatches,
    'mesh': dict(spec.mesh.shape),
    'dtype': plan.dtype,
  }


def _describe(value):
  if isinstance(value, functools.partial):
    return f'{_describe(value.func)}({value.keywords})'
  if not callable(value):
    return value
  name = getattr(value, '__qualname__', type(value).__qualname__)
  code = getattr(inspect.unwrap(value), '__code__', None)
  if '<' in name and code:  # Its name says nothing, its code does.
    simple = [str(c) for c in code.co_consts if not hasattr(c, 'co_code')]
    return (
      f'{name} {files.digest([code.co_code.hex(), code.co_names, simple])[:12]}'
    )
  return name
