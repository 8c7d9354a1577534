"""Distillation of any two networks: a plan, then its training.

What `launch.py` runs from a config runs here from arguments: the same stages,
the same step, the same loop.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import inspect
import itertools
import math
import operator
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxjax import checkpoint
from cxjax import curriculum
from cxjax import errors
from cxjax import feed
from cxjax import files
from cxjax import journal
from cxjax import losses
from cxjax import mesh as mesh_lib
from cxjax import methods
from cxjax import networks
from cxjax import optimizers
from cxjax import planning
from cxjax import recipe as recipe_lib
from cxjax import step
from cxjax import train

# Stages of hidden layers, unless layers are given.
STAGES = 4
# Bytes of the batches that lie on the devices at once.
AHEAD = 64e6
LOSSES = {**losses.LOGIT_LOSSES, **losses.HIDDEN_LOSSES}
BATCH = ('x', 'y', 'weights')
OUTPUT = ('alpha', 'top_k')
# Arguments of `cxjax.extracted` that `plan` passes on.
OPTIONS = (
  *OUTPUT,
  *(
    name
    for name, parameter in inspect.signature(
      curriculum.extracted
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

  teacher: networks.Network
  student: networks.Network
  batch: step.Batch
  stages: curriculum.Curriculum
  planned: tuple[planning.PlannedStage, ...]
  loss: str | None
  dtype: str | None = None

  @functools.cached_property
  def costed(self) -> tuple[planning.PlannedStage, ...]:
    """The stages with their FLOPs, as compiled for Adam."""
    networks_of = _models(self.teacher, self.student)
    return tuple(
      planning.with_costs(one, self.batch, optax.adam(1e-3), *networks_of)
      for one in self.planned
    )

  def __str__(self) -> str:
    """A row for each stage."""
    return planning.show(self.costed)

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
  teacher: networks.Network,
  student: networks.Network,
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
  stages: curriculum.Curriculum | None = None,
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
  batch = jax.eval_shape(lambda x: x, _arrays(_to_batch(x)))
  num_steps = _whole('num_steps', num_steps)
  steps = tuple(_whole('steps', n) for n in steps)
  if isinstance(stages, curriculum.Stage):
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
    networks.outputs(network, batch['x'], role)
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
    teacher, student = (networks.cast(n, dtype) for n in (teacher, student))
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
    _check_labels(student, batch)
  _check_outputs(teacher, student, batch['x'], stages)
  models = _models(teacher, student)
  planned = tuple(planning.plan_stage(s, batch, *models) for s in stages)
  computed = None if dtype is None else dtype.name
  return Plan(teacher, student, batch, tuple(stages), planned, name, computed)


def _whole(name, value):
  """An int, whatever library it is of."""
  try:
    return int(operator.index(value))
  except TypeError as error:
    raise errors.UserError(
      f'{name}={value!r} must be a whole number.'
    ) from error


def _arrays(x):
  """Arrays of NumPy in place of others that JAX does not know, as torch's."""
  known = jax.Array | jax.ShapeDtypeStruct
  return jax.tree.map(
    lambda leaf: leaf if isinstance(leaf, known) else np.asarray(leaf), x
  )


def _to_batch(x):
  """What a user gives as a batch, as in `cxjax.step`."""
  if isinstance(x, tuple | list) and len(x) == 2:
    x = {'x': x[0], 'y': x[1]}
  if not isinstance(x, Mapping) or 'x' not in x:
    return {'x': x}
  others = [str(name) for name in x if name not in BATCH]
  errors.require(
    not others,
    f'A batch has {", ".join(others)} beside x: it may have x, y (labels) and '
    "weights. Drop what is not read; inputs of the model go into x, as {'x': "
    '{...}}.',
  )
  return {name: leaf for name, leaf in x.items() if leaf is not None}


def _loss(loss, temperature, top_k):
  if not isinstance(loss, str):
    return loss
  fun = errors.lookup('loss', loss, LOSSES)
  if loss in losses.HIDDEN_LOSSES:
    return fun
  if temperature == 1 and not top_k:
    return fun
  return losses.logit_loss(loss, temperature, hard_labels=False, top=top_k)


def _check_labels(student, batch):
  """Raises UserError unless the labels are classes, one for each output."""
  want = networks.outputs(student, batch['x'], 'student')[0].shape[:-1]
  y = batch['y']
  errors.require(
    jnp.issubdtype(y.dtype, jnp.integer) and y.shape == want,
    f'The labels are {y.dtype}{list(y.shape)}; they must be whole numbers, the '
    f'classes, {list(want)}. Give y.argmax(-1) of one-hot labels; of a '
    'regression leave labels and alpha out, or give your own loss and metrics.',
  )
  shape = batch['weights'].shape if 'weights' in batch else want
  errors.require(
    shape == want,
    f"'weights' of shape {list(shape)}: give one for each output, "
    f'{list(want)}.',
  )


def _stages(
  teacher, student, batch, num_steps, layers, share, steps, loss, options
):
  if layers is None:
    theirs, ours = (
      networks.taps(n, batch['x']).layers for n in (teacher, student)
    )
    layers = curriculum.match_layers(theirs, ours)
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
    return curriculum.one_shot(num_steps, loss, **output)
  lengths = curriculum.split_steps(num_steps, len(layers), share, steps)
  return curriculum.extracted(layers, lengths, loss, **options, **output)


def _pooled(stages, teacher, student, x, pool):
  """The stages, each with its rule for what is not a vector."""

  def one(stage):
    if stage.student == curriculum.LOGITS or not stage.needs_teacher:
      return stage
    if pool is not None:
      return dataclasses.replace(stage, pool=pool)
    theirs, ours = (
      jax.eval_shape(
        functools.partial(step.activation, network.apply, name=name),
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


def distill(
  plan: Plan,
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
  metrics: step.Metrics | None = None,
  microbatches: int = 1,
  mesh: Mapping[str, Any] | None = None,
) -> tuple[Any, list[journal.Row]]:
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
      steps is None or _whole(name, steps) >= 1,
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
    _whole('seed', seed) >= 0, f'seed={seed} must not be negative.'
  )
  students = plan.student.params if plan.student.several else [plan.student.one]
  start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *students)
  num_steps = sum(stage.steps for stage in plan.stages)
  tenth = max(num_steps // 10, 1)
  shapes = plan.batch
  if log_every is None:
    size = sum(math.prod(s.shape) * s.dtype.itemsize for s in _leaves(shapes))
    log_every = int(min(100, tenth, max(AHEAD // size, 1)))
  multiple = lambda steps: max(steps // log_every, 1) * log_every
  batch_size = _leaves(shapes)[0].shape[0]
  for name in mesh or {}:
    errors.lookup('mesh', name, dict.fromkeys(MESH))
  sizes = {'data': -1, 'student': 'fsdp', 'teacher': 'fsdp', **(mesh or {})}
  devices = mesh_lib.make(sizes, batch_size)
  labelled = 'y' in shapes
  # Else by what the teacher says.
  by_labels = labelled and (_logits(plan) or not plan.stages[-1].needs_teacher)
  what = 'held_out'
  if held_out is None:
    batches = _Peeked(batches)
    what, held_out = 'the first batch', batches.first
  needed = ('x', 'y') if by_labels else ('x',)
  convert = functools.partial(_checked, classes=_classes(plan, metrics))
  held_out = _held_out(convert(held_out), shapes, needed, what)
  if by_labels and not metrics:
    _check_labels(plan.student, shapes)
  chosen = metrics or _metrics(plan, by_labels)
  keys = jax.random.split(jax.random.key(seed), 2)
  stage_keys = jax.vmap(jax.random.fold_in, (None, 0))(
    keys[0], jnp.arange(len(students))
  )
  small = {
    'held_out': held_out if by_labels else _judged(plan, held_out),
    'stage_keys': stage_keys,
    'init_keys': stage_keys,
    'data_keys': keys[1:],
  }
  recipe = recipe_lib.Recipe(
    student=plan.student,
    teacher=methods.Teacher(plan.teacher.apply, plan.teacher.params, ()),
    stages=plan.stages,
    start=start,
    draw=lambda key, at, rows: rows if labelled else {**rows, 'y': _none(rows)},
    rows=shapes,
    feed=lambda: feed.Feed(
      [[feed.Stream(batches, shapes, convert, num_steps)]],
      log_every,
      devices,
      shapes,
    ),
    batch_size=batch_size,
    optimizer=_optimizer(optimizer, learning_rate),
    metrics=chosen,
    teacher_metrics=step.TEACHER_METRICS if by_labels else {},
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
      result = train.fit(recipe, pathlib.Path(folder), 'distill')
  else:
    folder = pathlib.Path(workdir)
    rate = learning_rate if optimizer is None else 'of the optimizer'
    identity = _identity(plan, recipe, seed)
    files.claim(folder, {**identity, 'learning_rate': rate})
    result = train.fit(recipe, folder, folder.name)
  params = [
    plan.student.wrap(jax.tree.map(lambda leaf, i=i: leaf[i], result.params))
    for i in range(len(students))
  ]
  return params if plan.student.several else params[0], result.rows


def _held_out(held_out, shapes, needed, what):
  """A batch of any number of examples like those of the plan."""
  found = dict(held_out)
  wanted = {name: shapes[name] for name in needed if name in shapes}
  got = {name: found[name] for name in wanted if name in found}
  # Labels and weights that the plan has not are passed on as they are.
  found |= feed.alike(got, wanted, what, sized=False)
  sizes = {np.shape(leaf)[0] for leaf in _leaves(found)}
  errors.require(
    len(sizes) == 1 and 0 not in sizes,
    f'{what} has parts of {" and ".join(map(str, sorted(sizes)))} examples: '
    'they must be as many, and one at least.',
  )
  return jax.tree.map(jnp.asarray, found)


def _classes(plan, metrics):
  """How many classes the labels may name, if they are read as such."""
  used = any(s.alpha or not s.needs_teacher for s in plan.stages)
  if 'y' not in plan.batch or not (used or (_logits(plan) and not metrics)):
    return None
  output, _ = networks.outputs(plan.student, plan.batch['x'], 'student')
  return output.shape[-1]


def _checked(batch, classes):
  """`_to_batch`, with labels that name classes."""
  batch = _classes_where_read(_to_batch(batch))
  if classes is None or 'y' not in batch or not np.size(batch['y']):
    return batch
  y = np.asarray(batch['y'])
  low, high = y.min(), y.max()
  errors.require(
    low >= 0 and high < classes,
    f'Labels from {low} to {high}: the output has {classes} classes, 0 to '
    f"{classes - 1}. Leave examples out by 'weights' of 0.",
  )
  return batch


def _classes_where_read(batch):
  """A label that no weight counts, as -100, is class 0."""
  if not {'y', 'weights'} <= batch.keys():
    return batch
  y, weights = np.asarray(batch['y']), np.asarray(batch['weights'])
  if y.shape != weights.shape:
    return batch
  return {**batch, 'y': np.where(weights == 0, np.zeros_like(y), y)}


_leaves = jax.tree.leaves
MESH = (*mesh_lib.AXES, 'student', 'teacher')


def _none(rows):
  """Labels of a batch that has none; no stage reads them."""
  return jnp.zeros(_leaves(rows)[0].shape[:1], jnp.int32)


class _Peeked:
  """An iterable whose first item was looked at."""

  def __init__(self, batches):
    self._batches = batches
    iterator = iter(batches)
    self._again = iterator is not batches
    state = None
    if not self._again and hasattr(batches, 'get_state'):
      state = batches.get_state()
    self.first = next(iterator, None)
    errors.require(self.first is not None, 'There is no batch.')
    if state is not None:  # As if nothing had been read; it may be asked again.
      batches.set_state(state)
      self._again = True
    self._ahead = [] if self._again else [self.first]

  def __iter__(self):
    if self._again:
      return iter(self._batches)
    ahead, self._ahead = self._ahead, []
    return itertools.chain(ahead, self._batches)


def _logits(plan):
  return plan.loss in losses.LOGIT_LOSSES and plan.loss != 'mse'


def _metrics(plan, by_labels) -> step.Metrics:
  """What a plan is judged by."""
  if by_labels:
    return step.LABEL_METRICS
  last = plan.stages[-1]
  if _logits(plan):
    loss = last.loss
    if last.top_k:
      loss = lambda got, want: last.loss(got, losses.top_k(want, last.top_k))
    return {'agreement': step.TEACHER_METRICS['agreement'], 'loss': loss}
  if plan.loss == 'cosine':
    cosine = lambda got, want: 1 - losses.cosine(got, want)
    return {'cosine': cosine, 'loss': last.loss}
  return {'loss': last.loss}


def _judged(plan, held_out):
  """A batch whose labels are the teacher's output."""
  see = lambda params, x: plan.teacher.apply(params, step.undropped(x))[0]
  return {**held_out, 'y': jax.jit(see)(plan.teacher.params, held_out['x'])}


def _optimizer(optimizer, learning_rate) -> Callable:
  if optimizer is not None:
    return lambda length=1, offset=0: optimizer
  config = optimizers.default()
  config.learning_rate, config.schedule = learning_rate, 'cosine'
  return functools.partial(optimizers.make, config)


def _identity(plan, recipe, seed) -> dict[str, Any]:
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
    'teacher': checkpoint.fingerprint(plan.teacher.params),
    'student': checkpoint.fingerprint(recipe.start),
    'log_every': recipe.log_every,
    'microbatches': recipe.microbatches,
    'mesh': dict(recipe.mesh.shape),
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
