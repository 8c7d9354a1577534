"""Memory of the outputs of a run: pieces, and parts of an evaluation."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax

from cxjax import types
from cxjax.methods import output_pieces
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import stored_output
from cxjax.methods import targets as targets_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import metrics as metrics_lib
from cxjax.training import run_spec
from cxjax.training import teacher_head

# Rows of an evaluation that are computed at once: examples, or their tokens.
# Those of few stay in the cache of a CPU.
EVAL_ROWS, EVAL_ROWS_ON_CPU = 32_768, 1_024


@dataclasses.dataclass(frozen=True)
class Models:
  """The functions that a stage calls.

  Attributes:
    student: the student at inference.
    training: the student in training mode, or None.
    teacher: the teacher, or None.
  """

  student: types.Apply
  training: types.Training | None
  teacher: types.Apply | None


def split(
  models: Models,
  spec: run_spec.RunSpec,
  stage: stage_lib.Stage,
  *,
  stored: bool = False,
) -> Models:
  """Takes models apart whose outputs are too large to be held whole.

  That is so if the outputs of a batch have more than `output_pieces.WHOLE`
  bytes on one device (on a CPU `WHOLE_ON_CPU`), if the stage compares them row
  by row, and if every model that it calls ends in a matrix product.

  Args:
    models: models, as `CompiledSteps` calls them.
    spec: the run.
    stage: stage that is trained.
    stored: whether the targets come from a cache. The teacher is then its end
      alone, if that is what they need.

  Returns:
    Models that return `output_split.Apart`; or `models` as they are.
  """
  found = _split(models, spec, stage, stored=stored)
  teacher = spec.teacher
  if not stored or teacher is None or teacher.heads is None:
    return found
  rows = getattr(found.student, 'rows', None)
  ending = dataclasses.replace(
    teacher_ending(spec)[0], rows=rows, gather=teacher_head.gather(spec)
  )
  return dataclasses.replace(found, teacher=ending)


def teacher_ending(spec: run_spec.RunSpec) -> tuple[output_split.Ending, Any]:
  """The end of the teacher of a run, and the shapes of its weights.

  Raises:
    UserError: the teacher has no head.
  """
  batch = jax.eval_shape(spec.batch, jax.random.key(0), 0, spec.host.rows)
  assert spec.teacher is not None
  params = jax.eval_shape(lambda params: params, spec.teacher.params)
  return stored_output.require_head(
    mesh_lib.gathered(spec.teacher_apply, spec.layout.teacher),
    params,
    targets_lib.without_dropout(batch['x']),
  )


def _split(
  models: Models,
  spec: run_spec.RunSpec,
  stage: stage_lib.Stage,
  *,
  stored: bool,
) -> Models:
  """Implements `split` for models that are whole."""
  if not output_pieces.fits(stage):
    return models
  batch = jax.eval_shape(spec.batch, jax.random.key(0), 0, spec.host.rows)
  student = (spec.student_shapes, batch['x'])
  shape = jax.eval_shape(models.student, *student)[0].shape
  copies, shards = _copies(spec)
  parts = shards * spec.microbatches
  rows = output_pieces.rows_at_once(shape, copies, parts, _platform(spec))
  if rows is None:
    return models
  calls: dict[str, tuple[Callable[..., Any] | None, Any]] = {
    'student': (models.student, student),
    'training': (models.training, (*student, jax.random.key(0))),
  }
  if stage.needs_teacher and not stored and spec.teacher is not None:
    params = jax.eval_shape(lambda params: params, spec.teacher.params)
    x = targets_lib.without_dropout(batch['x'])
    calls['teacher'] = (models.teacher, (params, x))
  found = {
    name: output_split.split(fun, rows, *args)
    for name, (fun, args) in calls.items()
    if fun is not None
  }
  if not all(found.values()):
    return models
  return dataclasses.replace(models, **found)  # type: ignore[arg-type]


def eval_parts(spec: run_spec.RunSpec) -> int:
  """Parts of the held-out batch that are computed one after the other.

  Those are so many examples that a device has at most `EVAL_ROWS` rows (on a
  CPU `EVAL_ROWS_ON_CPU`), and `output_pieces.WHOLE` bytes of outputs, at once.
  Parts of one size are preferred, up to twice as many as there must be.
  """
  x, examples = spec.held_out['x'], spec.num_held_out
  shapes = jax.eval_shape(spec.student.apply, spec.student_shapes, x)
  read = {metric.output for metric in spec.metrics.values()} | {''}
  outputs = targets_lib.by_name(*shapes)
  values = sum(
    math.prod(leaf.shape)
    for name, leaf in outputs.items()
    if name == stage_lib.LOGITS
    or (name.startswith(stage_lib.OUTPUT) and name.partition(':')[2] in read)
  )
  copies, shards = _copies(spec)
  size = output_pieces.FLOAT * values * copies
  rows = EVAL_ROWS_ON_CPU if _platform(spec) == 'cpu' else EVAL_ROWS
  fewest = max(
    -(-run_spec.num_rows(x) // rows),
    -(-size // (output_pieces.WHOLE * shards)),
  )
  fewest = min(fewest, examples)
  equal = (n for n in range(fewest, 2 * fewest) if examples % n == 0)
  return next(equal, -(-examples // (examples // fewest)))


def eval_models(
  student: types.Apply,
  teacher: types.Apply | None,
  spec: run_spec.RunSpec,
  metrics: Mapping[str, metrics_lib.Metric],
) -> tuple[types.Apply, types.Apply | None]:
  """Takes models apart of which the output of one example is too large.

  That is so if it has more than `output_pieces.WHOLE` bytes on one device, if
  all metrics are row by row, and if the models end in a matrix product.

  Args:
    student: student, as it is called.
    teacher: teacher whose output is the reference; None if that is stored.
    spec: the run.
    metrics: metrics of the evaluation, by name.

  Returns:
    Models that return `output_split.Apart`; or these as they are.
  """
  size = -(-spec.num_held_out // eval_parts(spec))
  part = lambda leaf: types.shape_struct((size, *leaf.shape[1:]), leaf.dtype)
  x = jax.tree.map(part, targets_lib.without_dropout(spec.held_out['x']))
  shape = jax.eval_shape(student, spec.student_shapes, x)[0].shape
  copies, shards = _copies(spec)
  rows = output_pieces.rows_at_once(shape, copies, shards, _platform(spec))
  large = output_pieces.is_large(shape, copies, shards)
  if not (rows and large and all(m.rowwise for m in metrics.values())):
    return student, teacher
  ours = output_split.split(student, rows, spec.student_shapes, x)
  if teacher is None or ours is None:
    return ours or student, teacher
  assert spec.teacher is not None
  params = jax.eval_shape(lambda params: params, spec.teacher.params)
  theirs = output_split.split(teacher, rows, params, x)
  return (student, teacher) if theirs is None else (ours, theirs)


def _copies(spec: run_spec.RunSpec) -> tuple[int, int]:
  """Students on one device, and devices that a batch is sharded over."""
  sizes = spec.layout.mesh.shape
  copies = max(spec.num_seeds // sizes[mesh_lib.SEED], 1)
  return copies, sizes[mesh_lib.DATA] * sizes[mesh_lib.FSDP]


def _platform(spec: run_spec.RunSpec) -> str:
  """Name of the platform of the devices."""
  return spec.layout.mesh.devices.flat[0].platform
