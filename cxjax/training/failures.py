"""The cause of a loss that is not finite, in one line."""

from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
from typing import Any
from typing import NoReturn

from absl import logging
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.methods import losses
from cxjax.methods import python_state
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets
from cxjax.methods import weights as weights_lib
from cxjax.parallel import partition
from cxjax.training import checkpoints
from cxjax.training import extreme_values
from cxjax.training import optimizer_checks
from cxjax.training import run_spec

# Losses for which a teacher may exclude classes.
EXCLUDING = (
  losses.kl,
  losses.jensen_shannon,
  losses.hard_kl,
  losses.top_k_kl,
)
AT_ONCE = (
  'No step was made before: correct the model, the labels, or the scale of the '
  'loss.'
)
OWN_MESH = 'A run has its own mesh: leave shard_map and explicit axes out.'


def check_start(spec: run_spec.RunSpec) -> None:
  """Checks the models, the optimizer and the parameters at the start of a run.

  Args:
    spec: specification of the run; a student that is not given is not checked.

  Raises:
    UserError: a model or the optimizer keeps a state in Python; or a parameter
      of a student is not finite, or one of the teacher, whose activations for
      the held-out set then are not finite either.
  """
  _check_models(spec)
  optimizer_checks.check(spec)
  _check_student(spec)
  if spec.teacher is None or not spec.teacher.available:
    return
  if not any(stage.needs_teacher for stage in spec.stages):
    return
  name = _not_finite(spec.teacher.params)
  if name is not None:  # A buffer that nothing reads may be infinite.
    for stage in spec.stages:
      for _, _, value in _teacher_targets(spec, stage, spec.held_out):
        if _is_bad(value):
          _refuse_teacher(name)


def _check_models(spec: run_spec.RunSpec) -> None:
  """Raises UserError for models that keep a state in Python."""
  x, mesh = targets.without_dropout(spec.held_out['x']), spec.layout.mesh
  models: list[tuple[str, Any, tuple[Any, ...]]] = [
    ('student', spec.student.apply, (spec.student_shapes, x))
  ]
  if spec.teacher is not None and spec.teacher.available:
    models.append(('teacher', spec.teacher_apply, (spec.teacher.params, x)))
  if spec.training is not None:
    args = spec.student_shapes, x, settings.key(0)
    models.append(('student in training mode', spec.training, args))
  for role, apply, args in models:
    shapes = jax.eval_shape(lambda args: args, args)
    with errors.calling(f'The {role}', OWN_MESH), jax.set_mesh(mesh):
      python_state.refuse(f'The {role}', apply, *shapes)


def explain(
  spec: run_spec.RunSpec,
  stage: stage_lib.Stage,
  folder: pathlib.Path,
  bad: np.ndarray,
  rows: Any,
) -> None:
  """Raises UserError for a loss that is not finite.

  With `keep_diverged` it warns of a student that diverged, and returns.

  Args:
    spec: specification of the run.
    stage: stage that was trained.
    folder: folder of the run; its checkpoints are written.
    bad: `[S]` first step at which the loss of each seed is not finite.
    rows: rows that the batches were made of, `[T, streams, B, ...]`, or None.

  Raises:
    UserError: it names the batch in which nothing counts or something
      is not finite, or what is not finite of the teacher or the student, or
      else the seed and the step.
  """
  seed, at = int(bad.argmin()), int(bad.min())
  stream = seed % len(spec.keys.data)
  here = rows
  if rows is not None:
    here = jax.tree.map(lambda leaf: leaf[at % len(leaf), stream], rows)
  batch = jax.jit(spec.batch)(spec.keys.data[stream], at, here)
  _check_weights(spec, stage, seed, at, batch)
  loss = (
    f'The loss of seed {seed} is not finite at step {at}, in stage '
    f'{stage.name!r}'
  )
  with errors.about(loss):
    for step, tree in _batches(spec, rows, stream, at):
      _check_batch(step, tree)
    _check_student(spec)
    _check_teacher(spec, stage, at, batch)
    _check_outputs(spec, stage, at, batch)
    _check_sizes(spec, stage, batch)
  good = checkpoints.latest(folder)
  kept = 'none was saved yet' if good is None else f'{good} of {folder}'
  saved, where = f' The last good checkpoint: {kept}.', ', in another workdir'
  if spec.loop.temporary:
    saved = where = ''
  x = targets.without_dropout(batch['x'])
  advice = (
    _half(spec.student.apply, spec.student_shapes, x, 'student')
    or _schedule(spec, at)
    or (f'Try a smaller learning rate{where}.' if at else AT_ONCE)
  )
  message = f'{loss}; the batch and the targets are.{saved} {advice}'
  errors.require(spec.loop.keep_diverged, message)
  logging.warning(message)


def _check_weights(
  spec: run_spec.RunSpec,
  stage: stage_lib.Stage,
  seed: int,
  at: int,
  batch: types.Batch,
) -> None:
  """Raises UserError if nothing in the batch of a step counts."""
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
      'data.mask_rate, or correct the weights.',
    )


def _batches(
  spec: run_spec.RunSpec, rows: Any, stream: int, at: int
) -> Iterator[tuple[int, Any]]:
  """The batches of the steps up to `at` that are at hand, with their steps.

  A gradient that is not finite is noticed at the end of its dispatch alone.
  """
  draw, key = jax.jit(spec.batch), spec.keys.data[stream]
  if rows is None:
    yield at, draw(key, at, None)
    return
  length = len(jax.tree.leaves(rows)[0])
  for step in range(at - at % length, at + 1):
    here = jax.tree.map(lambda x, i=step % length: x[i, stream], rows)
    yield step, draw(key, step, here)


def _check_batch(step: int, batch: Any) -> None:
  """Raises UserError for an example that counts and is not finite."""
  counts: Any = True
  if isinstance(batch, dict) and batch.get('weights') is not None:
    weights = np.asarray(batch['weights'])
    counts = (weights.reshape(len(weights), -1) != 0).any(1)
  for path, leaf in jax.tree.leaves_with_path(batch):
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
      continue
    leaf = np.asarray(leaf, np.float32)
    bad = ~np.isfinite(leaf).reshape(len(leaf), -1).all(1) & counts
    errors.require(
      not bad.any(),
      f'{partition.leaf_name(path)!r} of the batch of step {step} is NaN or '
      f'infinite in {bad.sum()} of {len(bad)} examples, the first is example '
      f"{bad.argmax()}. Correct them, or leave them out with 'weights' of 0.",
    )


def _check_student(spec: run_spec.RunSpec) -> None:
  """Raises UserError for a student that is given and not finite."""
  found = map(_not_finite, spec.initial_students() or ())
  name = next((name for name in found if name is not None), None)
  errors.require(
    name is None,
    f'The parameter {name!r} of the student is NaN or infinite before '
    'training. Give finite parameters.',
  )


def _check_teacher(
  spec: run_spec.RunSpec, stage: stage_lib.Stage, at: int, batch: types.Batch
) -> None:
  """Raises UserError if the targets of a step are not finite."""
  teacher = spec.teacher
  if teacher is None or not teacher.available or not stage.needs_teacher:
    return
  for params, term, value in _teacher_targets(spec, stage, batch):
    if _is_bad(value):
      if (name := _not_finite(params)) is not None:
        _refuse_teacher(name)
      x = targets.without_dropout(batch['x'])
      half = _half(spec.teacher_apply, params, x, 'teacher')
      raise errors.UserError(
        f"The teacher's {term.target!r} is NaN or infinite for the batch of "
        f'step {at}, though its parameters and the batch are finite. '
        f'{half or "Correct the teacher, or leave the examples out."}'
      )
    if term.target == stage_lib.LOGITS:
      extreme_values.check_excluded("The teacher's 'logits'", value)
    errors.require(
      getattr(term.loss, 'func', term.loss) in EXCLUDING
      or not jnp.isneginf(value).any(),
      f"The teacher's {term.target!r} is -inf for some classes, which makes "
      f'the loss of stage {stage.name!r} infinite. The losses kl, '
      'jensen_shannon and hard_kl allow that of the teacher; or give finite '
      'logits.',
    )


def _check_outputs(
  spec: run_spec.RunSpec, stage: stage_lib.Stage, at: int, batch: types.Batch
) -> None:
  """Raises UserError if the student that is given has no finite activations."""
  for params, term, value in _student_values(spec, stage, batch):
    if not bool(jnp.isfinite(value).all()):
      x = targets.without_dropout(batch['x'])
      half = _half(spec.student.apply, params, x, 'student')
      advice = (
        'Correct the student: a class that it excludes by -inf must be one '
        'that the teacher excludes as well.'
      )
      raise errors.UserError(
        f"The student's {term.student!r} is not finite for the batch of step "
        f'{at}, before any training. {half or advice}'
      )


def _check_sizes(
  spec: run_spec.RunSpec, stage: stage_lib.Stage, batch: types.Batch
) -> None:
  """Raises UserError for values too large for the loss that compares them."""
  if spec.teacher is not None and spec.teacher.available:
    for _, term, value in _teacher_targets(spec, stage, batch):
      what = f"The teacher's {term.target!r}"
      extreme_values.check_size(what, value, term.loss)
  for _, term, value in _student_values(spec, stage, batch):
    what = f"The student's {term.student!r}, before any training,"
    extreme_values.check_size(what, value, term.loss)


def _student_values(
  spec: run_spec.RunSpec, stage: stage_lib.Stage, batch: types.Batch
) -> Iterator[tuple[types.Params, stage_lib.Term, jax.Array]]:
  """Activations of the given students that the terms of a stage compare."""
  named = stage.named_terms
  terms = {name: term.student for name, term in named.items()}

  def forward(params: types.Params, batch: types.Batch) -> dict[str, jax.Array]:
    x = targets.without_dropout(batch['x'])
    found = targets.forward(spec.student.apply, params, x)
    return _counted(found, batch, named, terms)

  for params in spec.initial_students() or ():
    for name, value in jax.jit(forward)(params, batch).items():
      yield params, named[name], value


def _half(apply: types.Apply, params: types.Params, x: Any, role: str) -> str:
  """Advice on a model that computes in float16; '' if it does not."""
  shapes = jax.eval_shape(lambda tree: tree, (params, x))
  if not _has_float16(jax.make_jaxpr(lambda *args: apply(*args))(*shapes)):
    return ''
  return (
    f'The {role} computes in float16, which holds no number above 65504: let '
    'it compute in bfloat16 or float32.'
  )


def _schedule(spec: run_spec.RunSpec, at: int) -> str:
  """Advice on a schedule that is not finite; '' if it is.

  Args:
    spec: specification of the run.
    at: the first step whose loss is not finite.
  """
  ends = spec.ends if spec.restart_schedule else ()
  step = at - 1 - max((end for end in ends if end < at), default=0)
  if step < 0 or not optimizer_checks.breaks_at(spec, step):
    return ''
  return (
    f'The optimizer makes NaN or infinity of finite gradients at step {step} '
    'of its schedule: correct its learning rate there.'
  )


def _has_float16(jaxpr: Any) -> bool:
  """True if any value of a jaxpr, or of one inside of it, is float16."""
  inner = getattr(jaxpr, 'jaxpr', jaxpr)
  return any(
    any(getattr(v.aval, 'dtype', None) == jnp.float16 for v in eqn.outvars)
    or any(map(_has_float16, core.jaxprs_in_params(eqn.params)))
    for eqn in inner.eqns
  )


def _counted(
  found: targets.Activations,
  batch: types.Batch,
  terms: Mapping[str, stage_lib.Term],
  names: Mapping[str, str],
) -> dict[str, jax.Array]:
  """The activation that each term compares, at the counted positions."""
  seen = {}
  for name, term in terms.items():
    shape = found[names[name]].shape
    weights = weights_lib.loss_weights(batch, term, names[name], shape)
    value = targets.compared(found, batch['x'], names[name], term)
    seen[name] = weights_lib.cleared(value, weights)
  return seen


def _refuse_teacher(name: str) -> NoReturn:
  raise errors.UserError(
    f'The parameter {name!r} of the teacher is NaN or infinite, and so are its '
    'activations. Give the teacher finite parameters.'
  )


def _teacher_targets(
  spec: run_spec.RunSpec, stage: stage_lib.Stage, batch: types.Batch
) -> Iterator[tuple[types.Params, stage_lib.Term, jax.Array]]:
  """Targets of the terms of a stage from the teacher, at counted positions."""
  if not stage.needs_teacher:
    return
  assert spec.teacher is not None
  params = spec.teacher.at(stage.checkpoint)

  def forward(params: types.Params, batch: types.Batch) -> dict[str, jax.Array]:
    x = targets.without_dropout(batch['x'])
    found = targets.forward(spec.teacher_apply, params, x)
    names = {name: term.target for name, term in stage.teacher_terms.items()}
    return _counted(found, batch, stage.teacher_terms, names)

  for name, value in jax.jit(forward)(params, batch).items():
    yield params, stage.named_terms[name], value


def _is_bad(value: jax.Array) -> bool:
  """True if a target is NaN or infinite; -inf is an impossible class."""
  return bool((jnp.isnan(value) | jnp.isposinf(value)).any())


def _not_finite(params: types.Params) -> str | None:
  """Path of the first array that is not finite, or None."""
  for path, leaf in jax.tree.leaves_with_path(params):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
      continue
    # Numpy compiles nothing; what lies elsewhere is not moved.
    local = not isinstance(leaf, jax.Array) or all(
      device.platform == 'cpu' for device in leaf.devices()
    )
    library = np if local and _is_whole(leaf) else jnp
    if not bool(library.isfinite(library.asarray(leaf)).all()):
      return partition.leaf_name(path)
  return None


def _is_whole(leaf: Any) -> bool:
  """True if this process has all of an array."""
  return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
