"""Plans of distillation: what a student is to imitate, and for how long."""

from collections.abc import Sequence
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax.data import user_batches
from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import losses
from cxjax.models import adapters
from cxjax.methods import stage_plan
from cxjax.methods import train_step

# Stages of hidden layers, unless layers are given.
STAGES = 4
LOSSES = {**losses.LOGIT_LOSSES, **losses.HIDDEN_LOSSES}
OUTPUT = ('alpha', 'top_k')
# Arguments of `cxjax.extracted` that `plan` passes on.
OPTIONS = (
  *OUTPUT,
  *(
    name
    for name, parameter in inspect.signature(
      stage_lib.extracted
    ).parameters.items()
    if parameter.kind == parameter.KEYWORD_ONLY
    and name not in ('pool', 'checkpoint')
  ),
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What `distill` will do; prints as a table.

  Attributes:
    teacher: the teacher.
    student: the student, or several.
    batch: shapes of a batch, as in `cxjax.step`.
    stages: the curriculum.
    planned: the same with shapes.
    loss: name of the last stage's loss, if it has one.
    dtype: that it is computed in, if that was given.
  """

  teacher: adapters.ModelAdapter
  student: adapters.ModelAdapter
  batch: train_step.Batch
  stages: stage_lib.Curriculum
  planned: tuple[stage_plan.StagePlan, ...]
  loss: str | None
  dtype: str | None = None

  @functools.cached_property
  def costed(self) -> tuple[stage_plan.StagePlan, ...]:
    """The stages with their FLOPs, as compiled for Adam."""
    networks_of = _models(self.teacher, self.student)
    return tuple(
      stage_plan.with_costs(one, self.batch, optax.adam(1e-3), *networks_of)
      for one in self.planned
    )

  def __str__(self) -> str:
    """A row for each stage."""
    return stage_plan.format_plan(self.costed)

  _repr_markdown_ = __str__


def _models(teacher, student):
  shapes = lambda tree: jax.eval_shape(lambda tree: tree, tree)
  return (
    student.apply,
    shapes(student.one),
    teacher.apply,
    shapes(teacher.params),
  )


def plan(
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  x: Any,
  *,
  num_steps: int,
  layers: Sequence[tuple[str, str]] | None = None,
  share: float = 0.4,
  steps: Sequence[int] = (),
  loss: str | losses.Loss = 'kl',
  temperature: float = 1.0,
  pool: str | None = None,
  dtype: jnp.dtype | None = None,
  stages: stage_lib.Curriculum | None = None,
  **options,
) -> Plan:
  """The curriculum extracted from a teacher, for a student of another make.

  Every layer of the student, or four of them at equal distances if it has
  more, is matched with the teacher's at the same fraction of the depth; then
  the output is. Layers are those of `taps`.

  Args:
    teacher: trained.
    student: fresh, or trained before.
    x: an example of a batch: the input, `(x, labels)` or `[x, labels]`, or
      `{'x': ..., 'y': ..., 'weights': ...}` without one or both of the last.
      Batches must be of its shape. Several inputs are one dict, `{'x': {...}}`.
    num_steps: updates, over all stages.
    layers: pairs of `(teacher's, student's)` activation in place of those; none
      at all, `()`, is one-shot distillation.
    share: of the steps for the hidden stages together.
    steps: lengths of all stages in place of `share`.
    loss: of the last stage, between outputs: 'kl', 'reverse_kl',
      'jensen_shannon' or 'mse' of logits, 'mse' of regressions, 'cosine' or
      'l2' of embeddings, or any `(student, teacher) -> [...]` that reduces the
      last axis.
    temperature: of 'kl', 'reverse_kl' and 'jensen_shannon'.
    pool: what to do with the places of a sequence or the grid of an image:
      'none' compares place by place, 'mean' their mean, 'flatten' all of them
      as one vector. By default images whose grids differ are pooled to their
      mean, as is an image that is compared with a vector.
    dtype: to compute in, as `jnp.bfloat16`; parameters stay float32.
    stages: a whole curriculum, in place of all of the above.
    **options: of `cxjax.extracted`: `law`, `readout`, `width`, `norm`,
      `hidden_loss`, `alpha` and so on.

  Returns:
    The plan. Nothing was computed yet.

  Raises:
    UserError: activations that are not there or cannot be matched; models that
      do not run on the example; labels or a loss that do not fit.
  """
  batch = jax.eval_shape(lambda x: x, user_batches.arrays(user_batches.to_batch(x)))
  num_steps = errors.whole('num_steps', num_steps)
  steps = tuple(errors.whole('steps', n) for n in steps)
  if isinstance(stages, stage_lib.Stage):
    stages = (stages,)
  errors.require(
    stages is None or len(stages) > 0, 'stages=() has no stage: give one.'
  )
  errors.require(
    stages is None or not options,
    f'{", ".join(options)}: a curriculum that is given as stages says that '
    'itself. Leave it out.',
  )
  for role, network in (('teacher', teacher), ('student', student)):
    adapters.outputs(network, batch['x'], role)
  errors.require(
    not teacher.several, 'A plan has one teacher: give it one set of params.'
  )
  if dtype is not None:
    try:
      dtype = jnp.dtype(dtype)
    except TypeError as error:
      raise errors.UserError(
        f'dtype={dtype!r} is none. Give jnp.bfloat16, for example.'
      ) from error
    teacher, student = (adapters.with_compute_dtype(n, dtype) for n in (teacher, student))
  name = loss if isinstance(loss, str) else None
  if stages is None:
    fun = _loss(loss, temperature, options.get('top_k', 0))
    stages = _stages(
      teacher, student, batch, num_steps, layers, share, steps, fun, options
    )
    stages = _pooled(stages, teacher, student, batch['x'], pool)
  errors.require(
    all(s.checkpoint is None for s in stages),
    'A plan knows the final teacher alone: leave checkpoints out, or distill '
    'from each of them in turn.',
  )
  if any(s.alpha or not s.needs_teacher for s in stages):
    errors.require(
      'y' in batch,
      'The curriculum needs the labels: give (x, labels) as the example, and '
      'as batches.',
    )
    user_batches.check_labels(student, batch)
  _check_outputs(teacher, student, batch['x'], stages)
  models = _models(teacher, student)
  planned = tuple(stage_plan.plan_stage(s, batch, *models) for s in stages)
  computed = None if dtype is None else dtype.name
  return Plan(teacher, student, batch, tuple(stages), planned, name, computed)


def _loss(loss, temperature, top_k):
  if not isinstance(loss, str):
    return loss
  fun = errors.lookup('loss', loss, LOSSES)
  if loss in losses.HIDDEN_LOSSES:
    return fun
  if temperature == 1 and not top_k:
    return fun
  return losses.logit_loss(loss, temperature, hard_labels=False, top=top_k)


def _stages(
  teacher, student, batch, num_steps, layers, share, steps, loss, options
):
  if layers is None:
    theirs, ours = (
      adapters.taps(n, batch['x']).layers for n in (teacher, student)
    )
    layers = stage_lib.match_layers(theirs, ours)
    if len(layers) > STAGES:
      layers = [layers[(i * len(layers)) // STAGES - 1] for i in range(1, 5)]
  options = dict(options)
  for option in options:
    errors.lookup('option', option, dict.fromkeys(OPTIONS))
  if isinstance(options.get('hidden_loss'), str):
    options['hidden_loss'] = errors.lookup(
      'hidden_loss', options['hidden_loss'], losses.HIDDEN_LOSSES
    )
  errors.require(
    not isinstance(layers, str),
    f"layers={layers!r} must be pairs of the teacher's and the student's "
    "activation, as [('block3', 'block1')].",
  )
  output = {k: options.pop(k) for k in OUTPUT if k in options}
  layers = tuple(layers)
  if not layers:
    errors.require(
      not options,
      f'{", ".join(options)}: there is no hidden layer that it could be for.',
    )
    return stage_lib.one_shot(num_steps, loss, **output)
  lengths = stage_lib.split_steps(num_steps, len(layers), share, steps)
  return stage_lib.extracted(layers, lengths, loss, **options, **output)


def _pooled(stages, teacher, student, x, pool):
  """The stages, each with its rule for what is not a vector."""

  def one(stage):
    if stage.student == stage_lib.LOGITS or not stage.needs_teacher:
      return stage
    if pool is not None:
      return dataclasses.replace(stage, pool=pool)
    theirs, ours = (
      jax.eval_shape(
        functools.partial(train_step.activation, network.apply, name=name),
        jax.eval_shape(lambda params: params, network.one),
        x,
      ).shape
      for network, name in ((teacher, stage.target), (student, stage.student))
    )
    grids = 4 in (len(theirs), len(ours)) and theirs[:-1] != ours[:-1]
    vectors = len(theirs) == len(ours) == 2
    return dataclasses.replace(
      stage, pool='mean' if grids or vectors else stage.pool
    )

  return tuple(map(one, stages))


def _check_outputs(teacher, student, x, stages):
  shapes = [
    jax.eval_shape(network.apply, network.one, x)[0].shape
    for network in (teacher, student)
  ]
  last = stages[-1]
  errors.require(
    not last.needs_teacher or last.readout or shapes[0] == shapes[1],
    f"The teacher's output is {list(shapes[0])}, the student's "
    f'{list(shapes[1])}: the last stage compares them as they are. Give them '
    'the same classes (the same vocabulary, in the same order).',
  )
