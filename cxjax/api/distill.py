"""Distillation of any two models: the training of a plan.

What `launch.py` runs from a config runs here from arguments: the same stages,
the same step, the same loop.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import settings
from cxjax.api import distilled
from cxjax.api import first_batch
from cxjax.api import fit_batches
from cxjax.api import held_out as held_out_lib
from cxjax.api import loop as loop_lib
from cxjax.api import mode_warnings
from cxjax.api import padding
from cxjax.api import placement
from cxjax.api import plan as plan_lib
from cxjax.api import run_identity
from cxjax.api import stored_targets
from cxjax.api import trainable as trainable_lib
from cxjax.data import conform
from cxjax.data import labels
from cxjax.data import loader
from cxjax.data import user_loader
from cxjax.methods import flops as flops_lib
from cxjax.methods import stage_plan
from cxjax.models import master_weights
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import failures
from cxjax.training import fitting
from cxjax.training import memory
from cxjax.training import metric_log
from cxjax.training import metrics as metrics_lib
from cxjax.training import optimizers
from cxjax.training import run_spec
from cxjax.training import target_cache
from cxjax.training import teacher as teacher_lib
from cxjax.training import trainer


@settings.own()
def distill(
  plan: plan_lib.Plan,
  batches: Iterable[Any],
  *,
  held_out: Any = None,
  last_batch: str = 'error',
  optimizer: optax.GradientTransformation | Mapping[str, Any] | None = None,
  learning_rate: float | Sequence[float] = 1e-3,
  restart_schedule: bool = True,
  seed: int | Sequence[int] = 0,
  workdir: str | pathlib.Path | None = None,
  save_every: int | None = None,
  log_every: int | None = None,
  eval_every: int | None = None,
  metrics: metrics_lib.Metrics | None = None,
  microbatches: int = 1,
  mesh: Mapping[str, Any] | None = None,
  trainable: trainable_lib.Trainable = '',
  on_record: metric_log.OnRecord | None = None,
  keep_best: str = '',
  patience: int | None = None,
  diverged: str = 'error',
  fit_on: Any = None,
  gradient_cosine: bool = False,
  cache: Mapping[str, Any] | None = None,
) -> distilled.Distilled:
  """Trains the student, or several at once, as planned.

  Args:
    plan: plan from `cxjax.plan`.
    batches: inputs or `(x, labels)`, like the example of the plan: a list, a
      data loader or any other iterable, which starts again if it ends. A
      background thread reads ahead and copies each batch. A resumed run skips
      the batches it has seen; an iterator with `get_state` and `set_state`
      (grain's) restores its state instead.
    held_out: batch to evaluate on, with any number of examples; or a list or a
      finite loader of several, all of whose examples count alike. By default
      the first of `batches`.
    last_batch: treatment of a batch with fewer examples than that of the plan:
      'error' ends the run; 'drop' leaves it out; 'pad' repeats examples with
      weight 0, so that each loss is the mean of the real ones.
    optimizer: optax transformation. It sees the tree of the student's
      parameters, with None for those that a stage does not train; regressors
      have a state of their own. If its `update` accepts `value`, `grad` or
      `value_fn`, they are passed. Students are evaluated and returned as
      lookahead, schedule_free and sam evaluate them. The default is Adam, with
      a cosine schedule over each stage; a dict changes fields of it, named as
      in a config: `{'name': 'adamw', 'warmup': 0.05}`.
    learning_rate: peak learning rate of that schedule, or a list with one for
      each of several students; not with an optimizer of optax.
    restart_schedule: whether each stage begins with a fresh optimizer. If
      False, parameters that a stage and the one before it train keep their
      optimizer state with its count of steps, so a schedule spans the stages.
    seed: seed of the random projections and regressors. For several students, a
      list gives each what it would draw if trained alone with that seed.
    workdir: folder for checkpoints, metrics and TensorBoard events; the same
      call resumes from the last checkpoint. Without it nothing is kept.
    save_every: steps between checkpoints; by default a tenth of the steps.
    log_every: steps between records, and batches that are put on the devices at
      once; by default up to 100.
    eval_every: steps between evaluations, rounded down to a multiple of
      `log_every`; by default a tenth of the steps.
    metrics: names of registered metrics, or a dict of functions `(output, y) ->
      [...]` and of `cxjax.Metric`; `y` are the labels if there are any and the
      outputs are logits, else the teacher's output. The first metric is shown
      during training, and decides for `patience`. By default 'accuracy' with
      labels, 'agreement' with the teacher without them, or 'cosine' for
      embeddings; and then the loss. A plain function cannot decide for
      `keep_best` or `patience`, since it does not say whether more is better.
    microbatches: parts of a batch, one after the other, to save memory.
    mesh: devices along 'data', 'fsdp' and 'model', and how 'student' and
      'teacher' are sharded, as in `c.mesh` of a config; by default all devices
      along 'data'.
    trainable: parameters to train: a pattern of their paths, such as 'block*'
      or '*/bias' (a glob of whole path components, or a regular expression); a
      type of nnx, such as `nnx.LoRAParam`; a function `(path, leaf) -> bool`;
      or a tuple of these, of which one must hold. The others stay as they are,
      without optimizer state. It does not concern batch statistics.
    on_record: function that is called with every record of metrics, a dict of
      'step', 'stage', 'loss', 'learning_rate' (of the last step; an optimizer
      of optax reports it if made with `optax.inject_hyperparams`) and, after an
      evaluation, 'eval/...'. If it raises StopIteration, the run ends with the
      next record and returns the students as they are then; any other exception
      ends the call.
    keep_best: name of a metric; the students are returned as they were when its
      mean was best, not as they are at the end.
    patience: number of evaluations of the last stage in a row without an
      improvement of any student after which the run ends. The metric is that of
      `keep_best`, or else the first one. It needs `held_out` or `keep_best`.
    diverged: treatment of a student whose loss is not finite although its batch
      and its targets are: 'error' ends the run; 'keep' warns and goes on, and
      the student's parameters come back as NaN.
    fit_on: batches for projections that are fitted, such as 'pca'; by default
      the first 16 of a list of batches, or the first one of a loader.
    gradient_cosine: report 'eval/gradient_cosine' in hidden stages: the cosine
      of their gradient and that of the last stage, on held-out examples.
    cache: stored targets, a dict of the fields of `cache` in a config, such as
      `{'folder': 'runs/targets', 'output': 'hidden'}`. If the folder has none,
      the teacher first runs over the batches once and stores them. Later calls
      train without its forward passes; with 'hidden' only its head runs.

  Returns:
    A `Distilled`, to unpack as `params, history`. The parameters have the form
    that the student came in (a list for several students). The history is a
    list of records of 'step', 'stage', 'loss' and, after an evaluation,
    'eval/...', a list with a number for each student. In a stage of several
    terms 'loss/TERM' is the loss of each, before its weight. With `keep_best`,
    `best_step` is the step of the returned students.

  Raises:
    UserError: batches of other shapes than the example's, a loader that raises,
      a loss that is not finite, or a workdir of another run.
    Stopped: the process was asked to stop; with a workdir the run is saved.
  """
  _check(plan, on_record, workdir, metrics)
  stored = stored_targets.checked(cache, workdir)
  trainable = trainable_lib.resolved(trainable, plan.student)
  lengths = loop_lib.lengths(
    log_every=log_every, save_every=save_every, eval_every=eval_every
  )
  keep_best = arguments.text('keep_best', keep_best, "'accuracy'")
  patience = loop_lib.patience_of(patience, held_out, keep_best)
  seed = _seeds(seed, plan)
  learning_rate = optimizers.peak_learning_rates(learning_rate, _count(plan))
  errors.lookup('diverged', diverged, dict.fromkeys(('error', 'keep')))
  optimizers.check(optimizer, learning_rate)
  restart = arguments.flag('restart_schedule', restart_schedule)
  plan = _weighted(plan, last_batch)
  layout, unplaced = placement.layout(plan, mesh), plan
  plan = _with_master_weights(placement.placed(plan, layout))
  folder = checks.optional(checks.path)('workdir', workdir)
  with user_loader.UserLoader(batches) as user:
    first = functools.partial(first_batch.read, folder, user, plan.batch)
    evaluation = held_out_lib.of_run(
      plan, batches, user, first, held_out, metrics
    )
    loop = dataclasses.replace(
      loop_lib.of_plan(
        plan, workdir, **lengths, keep_best=keep_best, patience=patience
      ),
      keep_diverged=diverged == 'keep',
      gradient_cosine=arguments.flag('gradient_cosine', gradient_cosine),
    )
    spec = _spec(plan, (user, last_batch), evaluation, loop, layout, seed)
    fit = fit_batches.read(plan, fit_on, batches, first, evaluation, last_batch)
    spec = dataclasses.replace(
      spec,
      host=dataclasses.replace(spec.host, fit_on=fit),
      optimizer=optimizers.of_distill(optimizer, learning_rate),
      restart_schedule=restart,
      carry_state=not restart,
      microbatches=arguments.integer('microbatches', microbatches, 1),
      trainable=trainable,
      plan_costs=functools.partial(
        _plan_costs, unplaced, optimizer is None and not trainable
      ),
    )
    _check_run(spec, plan)
    rate = learning_rate if isinstance(optimizer, Mapping | None) else None
    describe = lambda spec: run_identity.describe(
      plan, spec, seed, rate, last_batch
    )
    run_identity.require_same(functools.partial(describe, spec), user)
    source = stored_targets.Source(
      user, batches, evaluation, last_batch, folder
    )
    spec, known = stored_targets.applied(stored, spec, describe, source)
    run = functools.partial(_train, plan, spec, on_record=on_record)
    if folder is None:
      with loop_lib.nothing_kept(), tempfile.TemporaryDirectory() as temporary:
        return run(pathlib.Path(temporary), 'distill')
    again = held_out is None or (bool(fit) and fit_on is None)
    first_batch.claim(folder, describe(spec), batches, known(), again)
    return run(folder, folder.name)


def _weighted(plan: plan_lib.Plan, last_batch: Any) -> plan_lib.Plan:
  """The plan, with weights in its batches if the last one may be padded."""
  errors.lookup('last_batch', last_batch, dict.fromkeys(conform.LAST_BATCH))
  if last_batch == 'pad':
    plan = padding.weighted(plan)
  if plan.padding is not None or 'weights' in plan.batch:
    mode_warnings.warn_of_weights(plan.student, plan.batch['x'])
  return plan


def _with_master_weights(plan: plan_lib.Plan) -> plan_lib.Plan:
  """The plan with a student that takes float32; refuses one in float16."""
  master_weights.check(jnp.dtype(plan.dtype or jnp.float32), 'dtype')
  student = master_weights.with_master_weights(plan.student)
  names = {term.student for stage in plan.stages for term in stage.terms}
  master_weights.check_computation(student, plan.batch['x'], names)
  return dataclasses.replace(plan, student=student)


def _plan_costs(
  plan: plan_lib.Plan, as_planned: bool, spec: run_spec.RunSpec
) -> list[stage_plan.StagePlan]:
  """The stages of a run with their FLOPs; those of the plan, if they hold."""
  if as_planned and not spec.dropout and not spec.stored_targets:
    return list(plan.stage_plans_with_costs)
  return target_cache.plan_with_costs(spec, flops_lib.COUNTS[plan.costs])


def _check_run(spec: run_spec.RunSpec, plan: plan_lib.Plan) -> None:
  """Raises UserError for a run that cannot be trained, or does not fit."""
  failures.check_start(spec)
  memory.require(spec, plan.stage_plans)
  fitting.check(spec, plan.stage_plans)


def _train(
  plan: plan_lib.Plan,
  spec: run_spec.RunSpec,
  folder: pathlib.Path,
  title: str,
  on_record: metric_log.OnRecord | None,
) -> distilled.Distilled:
  """Trains, and gives the parameters the form in which they came."""
  result = trainer.fit(spec, folder, title, on_record)
  return distilled.finish(plan, spec, folder, result)


def _check(
  plan: Any,
  on_record: Any,
  workdir: Any,
  metrics: Any,
) -> None:
  """Raises UserError for arguments of other kinds."""
  errors.require(
    isinstance(plan, plan_lib.Plan),
    f'The plan is a {type(plan).__name__}: make one with cxjax.plan(teacher, '
    'student, example, num_steps=...).',
  )
  if on_record is not None:
    arguments.function('on_record', on_record, 'print')
  errors.require(
    workdir is None
    or (isinstance(workdir, str | os.PathLike) and bool(workdir)),
    f'workdir={workdir!r} must be a folder, or None to keep nothing.',
  )
  errors.require(
    metrics is None
    or isinstance(metrics, Mapping | tuple | list)
    or (isinstance(metrics, str) and metrics != ''),
    f"metrics={metrics!r} must be names, as ('accuracy',), or a dict of "
    'functions by name.',
  )


def _seeds(seed: Any, plan: plan_lib.Plan) -> int | tuple[int, ...]:
  """The seed of all students, or one for each."""
  whole = lambda seed: arguments.integer('seed', seed, 0, 2**32 - 1)
  if not isinstance(seed, Sequence) or isinstance(seed, str):
    return whole(seed)
  return optimizers.for_each('seed', tuple(map(whole, seed)), _count(plan))


def _listed(seed: int | tuple[int, ...]) -> tuple[int, ...]:
  return seed if isinstance(seed, tuple) else (seed,)


def _count(plan: plan_lib.Plan) -> int:
  """Number of students."""
  return len(plan.student.params) if plan.student.several else 1


def _spec(
  plan: plan_lib.Plan,
  batches: tuple[user_loader.UserLoader, str],
  evaluation: held_out_lib.Evaluation,
  loop: run_spec.Loop,
  layout: run_spec.Layout,
  seed: int | tuple[int, ...],
) -> run_spec.RunSpec:
  """The specification of the run, the user's optimizer apart."""
  students = plan.student.params if plan.student.several else [plan.student.one]
  shapes, num_steps = plan.batch, sum(stage.steps for stage in plan.stages)
  count, own = len(students), isinstance(seed, tuple)
  pairs = [jax.random.split(settings.key(one), 2) for one in _listed(seed)]
  keys = pairs[0]
  roots = jnp.stack([first for first, _ in pairs * (count // len(pairs))])
  numbers = jnp.zeros(count, int) if own else jnp.arange(count)
  stage_keys = jax.vmap(jax.random.fold_in)(roots, numbers)
  placed = mesh_lib.replicate(
    (stage_keys, keys[1:], evaluation.held_out), layout.mesh
  )
  stage_keys, data_keys, held_out = placed
  user, last_batch = batches
  stream = lambda: loader.BatchStream(
    user, shapes, evaluation.convert, num_steps, last_batch
  )
  more = lambda rows: {} if 'y' in shapes else {'y': labels.placeholders(rows)}
  draw = lambda key, at, rows: {**plan.with_mask(rows), **more(rows)}
  teacher_metrics = metrics_lib.TEACHER_METRICS if evaluation.by_labels else ()
  return run_spec.RunSpec(
    student=plan.student,
    teacher=teacher_lib.of(plan.teacher),
    stages=plan.stages,
    start=tuple(students),
    draw=draw,
    host=run_spec.HostData(
      lambda: loader.HostLoader(
        [[stream()]], loop.log_every, layout.mesh, shapes, user.thread
      ),
      shapes,
    ),
    held_out=held_out,
    keys=run_spec.Keys(stage_keys, data_keys, stage_keys),
    batch_size=jax.tree.leaves(shapes)[0].shape[0],
    optimizer=optimizers.of_distill(None, 1e-3),
    metrics=evaluation.metrics,
    primary=next(iter(evaluation.metrics)),
    teacher_metrics=metrics_lib.resolve(teacher_metrics),
    layout=layout,
    loop=loop,
    lookahead=1,
  )
