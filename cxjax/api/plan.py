"""Plans of distillation: what a student is to imitate, and for how long."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from cxjax import arguments
from cxjax import deprecation
from cxjax import errors
from cxjax import pickling
from cxjax import settings
from cxjax import tables
from cxjax import types
from cxjax.api import costs as costs_lib
from cxjax.api import feature_axes
from cxjax.api import list_inputs
from cxjax.api import matching
from cxjax.api import padding as padding_lib
from cxjax.api import placement
from cxjax.api import prepared
from cxjax.api import several
from cxjax.api import stages as stages_lib
from cxjax.api import two_inputs
from cxjax.data import user_batches
from cxjax.methods import curricula
from cxjax.methods import flops as flops_lib
from cxjax.methods import layer_matching
from cxjax.methods import legacy
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.models import adapters
from cxjax.models import channels
from cxjax.models import probabilities

# Hidden stages, unless layers are given, and their share of the steps.
STAGES, SHARE = 4, 0.4
TEMPERATURE = arguments.Range(0, ends=(False, False))
OUTPUT_OPTIONS = ('alpha', 'top_k')
# Options that `plan` passes on to `cxjax.extracted`.
OPTIONS = (
  *OUTPUT_OPTIONS,
  'hidden_loss',
  'ending',
  'freeze',
  *(name for name in curricula.HIDDEN_OPTIONS if name != 'pool'),
)


@deprecation.old_attributes(
  planned=('stage_plans', lambda plan: plan.stage_plans),
  costed=('stage_plans_with_costs', lambda plan: plan.stage_plans_with_costs),
)
@dataclasses.dataclass(frozen=True)
class Plan(tables.Printed, pickling.Picklable):
  """The stages that `distill` will train; prints as a table.

  Attributes:
    teacher: the teacher.
    student: the student, or several.
    batch: shapes of a batch, as in `cxjax.types`.
    stages: the curriculum.
    stage_plans: the same with shapes.
    loss: name of the loss between the outputs, if it has one.
    dtype: compute dtype, or None.
    matched: how the layers were chosen, in one line; '' if they were given.
    costs: how FLOPs are found, 'counted' or 'compiled'.
    padding: which tokens or examples of a batch count; None is all of them.
    traced_functions: `apply` of the teacher and of the student, and the
      student's `training`, of which JAX keeps the traces.
  """

  teacher: adapters.ModelAdapter
  student: adapters.ModelAdapter
  batch: types.Batch
  stages: stage_lib.Curriculum
  stage_plans: tuple[stage_plan.StagePlan, ...]
  loss: str | None
  dtype: str | None = None
  matched: str = ''
  costs: str = 'counted'
  padding: padding_lib.Padding | None = None
  traced_functions: tuple[Any, ...] = dataclasses.field(default=(), repr=False)

  def with_mask(self, batch: types.Batch) -> types.Batch:
    """A batch with the mask of its padding, if the plan has one."""
    return batch if self.padding is None else self.padding(batch)

  @functools.cached_property
  @settings.own()  # As `plan`, or JAX would not find its traces.
  def stage_plans_with_costs(self) -> tuple[stage_plan.StagePlan, ...]:
    """The stages with their FLOPs for Adam, found once."""
    return costs_lib.with_costs(self)

  def markdown(self) -> str:
    """Returns a table with a row for each term, and how layers were chosen."""
    table = stage_plan.format_plan(self.stage_plans_with_costs)
    return f'{table}\n{self.matched}' if self.matched else table


@settings.own()
def plan(
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  x: Any,
  *,
  num_steps: int | None = None,
  layers: matching.Layers = None,
  share: float = SHARE,
  steps: Sequence[int] = (),
  loss: several.Loss = 'kl',
  auxiliary: Mapping[str, Any] | None = None,
  temperature: float = 1.0,
  pool: str | None = None,
  feature_axis: feature_axes.FeatureAxis = None,
  mask: padding_lib.Mask | None = None,
  vocab: int | None = None,
  dtype: Any = None,
  stages: stage_lib.Curriculum | stage_lib.Stage | None = None,
  costs: str = 'counted',
  **options: Any,
) -> Plan:
  """Plans the curriculum extracted from a teacher, for any student.

  In turn, each layer of the student learns from the layer of the teacher at
  the same fraction of the depth; the last stage learns from the output. If the
  student has more than four layers, four at equal distances are matched.
  Layers are those of `taps`. An encoder is matched with an encoder and a
  decoder with a decoder, by name or else by the inputs that they read.

  Args:
    teacher: the trained model.
    student: the model to train, fresh or trained before.
    x: an example of a batch: the input, `(x, labels)` or `[x, labels]`, or
      `{'x': ..., 'y': ..., 'weights': ...}`, in which 'y' and 'weights' are
      optional. All batches must have its shape. Several inputs are one dict,
      `{'x': {...}}`.
    num_steps: number of updates over all stages; not needed with `stages`.
    layers: pairs `(teacher's activation, student's activation)`, as a list or a
      dict, in place of the layers that are found; `()` is one-shot
      distillation. The pattern 'blocks/*' matches all layers of that form in
      both models by depth, `('blocks/*', 'h/*')` those of two forms; a dict or
      a list of three or more takes several patterns. 'blocks/*:2' is every
      second layer of a pattern, `cxjax.every(2)` every second layer that is
      found. Numbers may count from the end: `{'blocks/-1': 'h/-1'}`. A block
      that returns several arrays stands for the one that the next block reads.
    share: fraction of all steps that the hidden stages take together.
    steps: lengths of all stages in place of `share`.
    loss: loss between the outputs, for the last stage: 'kl', 'reverse_kl',
      'jensen_shannon' or 'mse' for logits, 'mse' for regression, 'cosine' or
      'l2' for embeddings, or a function `(student, teacher) -> [...]` that
      reduces the last axis. For several outputs, a dict with a loss for each,
      with a weight if wanted, and None to leave one out: `{'logits': 'kl',
      'boxes': ('mse', 0.5), 'scores': None}`; or one loss over all outputs,
      `{'*': function}`. Evaluation reads 'logits', or else the first output.
    auxiliary: weights of auxiliary losses in the last stage, such as
      `{'losses/*': 0.01}`. These are scalars that the student sows (linen: into
      that collection; nnx: as `nnx.Intermediate`) or returns, by name. A star
      also matches slashes. The losses that a pattern matches are added.
    temperature: temperature of 'kl', 'reverse_kl' and 'jensen_shannon'.
    pool: reduction of the tokens of a sequence or the grid of an image: 'none'
      compares position by position, 'mean' their mean, 'flatten' all of them as
      one vector. By default images are pooled to their mean if their grids
      differ or if one is compared with a vector.
    feature_axis: axis of the features of hidden activations, such as 1 for
      `[B, C, L]`; or a dict of axes by name or pattern, of which the first that
      fits counts, `{'blocks/*': 1}`; or a pair of these for teacher and
      student, `(1, None)`. None finds it: the channels of convolutions if the
      model has any, else the last axis. `plan` warns if the layers do not show
      which axis has the features, as in some MLP-Mixers.
    mask: function `batch -> [B, tokens]` or `[B]`, True for what counts in the
      losses of all stages, in pooled means and in the evaluation, such as
      `lambda batch: batch['x'] != 0`. The models do not see it. Without it, the
      entry 'mask' of an input that is a dict is used.
    vocab: number of leading classes that are compared and evaluated, for models
      whose vocabularies differ in size, for example by padding.
      `cxjax.huggingface.shared_vocabulary` finds it for Hugging Face folders.
      The student's other logits are not trained.
    dtype: dtype to compute in, such as `jnp.bfloat16`; parameters keep theirs.
    stages: a whole curriculum: a tuple of `cxjax.Stage`, or one stage. It takes
      the place of `layers`, `share`, `steps`, `loss`, `temperature`, `pool` and
      the options below. A term may name one of several outputs,
      'output:boxes', or, with the target 'none', an auxiliary loss,
      'auxiliary:losses/*'.
    costs: how the printed FLOPs are found: 'counted' from the jaxpr, at once,
      or 'compiled' by XLA, once for the plan and its run.
    **options: options of `cxjax.extracted`: `projection`, `regressor`, `width`,
      `norm`, `hidden_loss`, `ending`, `alpha` and so on.

  Returns:
    The plan; nothing is trained yet.

  Raises:
    UserError: activations that do not exist or cannot be matched; models that
      do not run on the example; labels or a loss that do not fit.
  """
  errors.lookup('costs', costs, flops_lib.COUNTS)
  example = user_batches.arrays(user_batches.to_batch(x))
  example = arguments.shapes('The example of a batch', example)
  user_batches.check_example(example)
  dtype = None if dtype is None else arguments.dtype('dtype', dtype)
  models = (
    placement.received(teacher, 'teacher'),
    placement.received(student, 'student'),
  )
  with list_inputs.explained(x, example, models):
    outputs = several.chosen(models, loss, auxiliary, example['x'], stages)
    outputs = several.shared(outputs, vocab, example['x'])
    models = outputs.teacher, outputs.student
    padding, batch, given = padding_lib.applied(mask, example, models)
    sides = feature_axes.sides(feature_axis)
    hidden = not isinstance(layers, tuple | list) or len(layers) > 0
    teacher, student = prepared.checked(given, batch['x'], dtype, hidden, sides)
  matched = ''
  if stages is not None:
    beside = {
      'layers': layers is not None,
      'share': not _is(share, SHARE),
      'steps': not isinstance(steps, tuple) or len(steps) > 0,
      'loss': not _is(loss, 'kl'),
      'auxiliary': auxiliary is not None,
      'temperature': not _is(temperature, 1),
      'pool': pool is not None,
      **dict.fromkeys(options, True),
    }
    stages = stages_lib.given(stages, num_steps, beside)
    loss_name = stages_lib.output_loss(stages[-1])
  else:
    fun = _loss(outputs.loss, temperature, options.get('top_k', 0))
    loss_name = outputs.loss if isinstance(outputs.loss, str) else None
    stages, matched = _stages(
      teacher, student, batch, (num_steps, share, steps), layers, fun, options
    )
    stages = pooled(stages, teacher, student, batch['x'], pool)
    stages = outputs.with_terms(stages, lambda one: _loss(one, temperature, 0))
  two_inputs.check(x, stages, models, example)
  both, training = costs_lib.models(teacher, student), student.training
  feature_axes.check(sides, (teacher, student), batch['x'], stages)
  _check_stages(stages, teacher, student, batch)
  planned = tuple(
    stage_plan.plan_stage(s, batch, *both, training=training) for s in stages
  )
  theirs, ours = prepared.as_compared(given, stages, batch['x'], dtype, sides)
  return Plan(
    teacher=theirs,
    student=ours,
    batch=example,
    stages=stages,
    stage_plans=planned,
    loss=loss_name,
    dtype=None if dtype is None else dtype.name,
    matched=matched,
    costs=costs,
    padding=padding,
    traced_functions=(teacher.apply, student.apply, training),
  )


def _is(value: Any, default: str | float) -> bool:
  """True for a default that was left as it is, of any value that is given."""
  return isinstance(value, str | int | float) and value == default


def _check_stages(
  stages: stage_lib.Curriculum,
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  batch: types.Batch,
) -> None:
  """Raises UserError for stages that the models and the batch do not allow."""
  stages_lib.check(stages, teacher, student, batch)
  both = costs_lib.models(teacher, student)
  channels.check(stages, batch['x'], *both)
  probabilities.check(stages, batch['x'], *both)


def _loss(loss: Any, temperature: Any, top_k: int) -> types.Loss:
  """The loss between outputs."""
  if not isinstance(loss, str):
    return loss
  temperature = arguments.number('temperature', temperature, TEMPERATURE)
  fun = errors.lookup('loss', loss, stages_lib.LOSSES, losses.FUNCTION)
  top_k = arguments.integer('top_k', top_k, 0)
  if loss in losses.HIDDEN_LOSSES or (temperature == 1 and not top_k):
    return fun
  return losses.logit_loss(loss, temperature, hard_labels=False, top=top_k)


def _stages(
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  batch: types.Batch,
  lengths: tuple[int | None, float, Sequence[int]],
  layers: matching.Layers,
  loss: types.Loss,
  options: dict[str, Any],
) -> tuple[stage_lib.Curriculum, str]:
  """The curriculum extracted from the teacher, and how layers were chosen."""
  num_steps, share, steps = lengths
  errors.require(
    num_steps is not None,
    'num_steps is missing: give the number of updates, or stages.',
  )
  num_steps = arguments.integer('num_steps', num_steps)
  layers, how = matching.pairs(layers, teacher, student, batch['x'], STAGES)
  options = legacy.term_fields(options, 'plan', stacklevel=5)
  for option in options:
    errors.lookup('option', option, dict.fromkeys(OPTIONS))
  if isinstance(options.get('hidden_loss'), str):
    options['hidden_loss'] = losses.hidden_loss(
      'hidden_loss', options['hidden_loss'], losses.FUNCTION
    )
  layers = layer_matching.check_pairs(layers)
  output = {k: options.pop(k) for k in OUTPUT_OPTIONS if k in options}
  if not layers:
    errors.require(
      not options,
      f'{", ".join(options)}: there is no hidden layer that it could be for.',
    )
    return curricula.one_shot(num_steps, loss, **output), how
  parts = layer_matching.split_steps(num_steps, len(layers), share, steps)
  return curricula.extracted(layers, parts, loss, **options, **output), how


def pooled(
  stages: stage_lib.Curriculum,
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  x: types.Input,
  pool: str | None,
) -> stage_lib.Curriculum:
  """The stages, with a rule for hidden activations that are no vectors.

  Args:
    stages: stages of any method.
    teacher: the teacher.
    student: the student.
    x: shapes of a batch.
    pool: reduction in all hidden terms, as for `plan`; None chooses for each.

  Returns:
    The stages.

  Raises:
    UserError: an activation that is not there.
  """
  theirs, ours = (matching.shapes(model, x) for model in (teacher, student))

  def one(term: stage_lib.Term) -> stage_lib.Term:
    if term.student == stage_lib.LOGITS or not term.needs_teacher:
      return term
    if pool is not None:
      return dataclasses.replace(term, pool=pool)
    a = matching.shape_of(term.target, theirs, 'teacher', teacher, x)
    b = matching.shape_of(term.student, ours, 'student', student, x)
    grids = 4 in (len(a), len(b)) and a[:-1] != b[:-1]
    vectors = len(a) == len(b) == 2
    mean = 'mean' if grids or vectors else term.pool
    return dataclasses.replace(term, pool=mean)

  return tuple(
    dataclasses.replace(stage, terms=tuple(map(one, stage.terms)))
    for stage in stages
  )
