"""Refusal of probabilities where a loss reads logits."""

from collections.abc import Callable
from collections.abc import Iterator
import functools
from typing import Any

from absl import logging
import jax

from cxjax import errors
from cxjax import types
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import dataflow
from cxjax.models import normalized

# Losses that take a softmax of what they compare.
OF_LOGITS = (
  losses.cross_entropy,
  losses.hard_kl,
  losses.jensen_shannon,
  losses.kl,
  losses.reverse_kl,
  losses.top_k_kl,
)
LOGITS = (
  'Give logits: the model without its last softmax, or with output=lambda p: '
  'jnp.log(p + 1e-20).'
)


def bare(loss: Any) -> Any:
  """The function inside of `functools.partial`."""
  while isinstance(loss, functools.partial):
    loss = loss.func
  return loss


def reads_logits(loss: Any) -> bool:
  """True for a loss of ours that takes a softmax of what it compares."""
  return bare(loss) in OF_LOGITS


def ends(
  apply: types.Apply, params: types.Params, x: types.Input
) -> Callable[[str], str]:
  """Last operations of the output and the activations of a model.

  Args:
    apply: the model.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.

  Returns:
    A function from the name of an activation to 'softmax', 'sigmoid' or ''.
  """
  closed, found = jax.make_jaxpr(
    functools.partial(targets_lib.forward, apply), return_shape=True
  )(*jax.eval_shape(lambda tree: tree, (params, x)))
  flow = dataflow.Dataflow(closed, inner=True)
  values = dict(zip(sorted(found), flow.outputs, strict=True))

  def end(name: str) -> str:
    value = values.get(name)
    if normalized.has_softmax(flow, value):
      return 'softmax'
    return 'sigmoid' if normalized.has_sigmoid(flow, value) else ''

  return end


def check(
  stages: stage_lib.Curriculum,
  x: types.Input,
  student: types.Apply,
  student_params: types.Params,
  teacher: types.Apply | None = None,
  teacher_params: types.Params = None,
) -> None:
  """Checks that losses of logits read no probabilities.

  A softmax of probabilities is almost the same for all classes. A function of
  the user may read either, and is not checked.

  Args:
    stages: stages of a plan.
    x: shapes of an input.
    student: the student.
    student_params: its parameters; shapes are enough.
    teacher: the teacher, if there is one.
    teacher_params: its parameters; shapes are enough.

  Raises:
    UserError: an activation that such a loss reads ends in a softmax. A sigmoid
      is warned of.
  """
  models = {
    'student': (student, student_params, x),
    'teacher': (teacher, teacher_params, targets_lib.without_dropout(x)),
  }
  for role, (apply, params, given) in models.items():
    found: dict[str, tuple[str, str]] = {}
    for name, where in read(stages, role):
      found.setdefault(name, where)
    if not found or apply is None:
      continue
    end = ends(apply, params, given)
    for name, (stage, loss) in found.items():
      what = 'output' if name == stage_lib.LOGITS else f'activation {name!r}'
      kind = end(name)
      errors.require(
        kind != 'softmax',
        f'The {what} of the {role} is probabilities, the result of a softmax, '
        f'and the loss {loss} of stage {stage!r} reads logits. {LOGITS}',
      )
      if kind == 'sigmoid':
        logging.warning(
          'The %s of the %s is the result of a sigmoid, and the loss %s of '
          'stage %r takes a softmax of it, as of logits. Give the model '
          'without the sigmoid, or a loss of your own.',
          what,
          role,
          loss,
          stage,
        )


def read(
  stages: stage_lib.Curriculum, role: str
) -> Iterator[tuple[str, tuple[str, str]]]:
  """Yields activations that losses of logits read.

  Args:
    stages: stages of a plan.
    role: 'student' or 'teacher'.

  Yields:
    The name of the activation, and those of the stage and the loss.
  """
  for stage in stages:
    for term in stage.terms:
      if not reads_logits(term.loss):
        continue
      where = stage.name, bare(term.loss).__name__
      changed = term.projection, term.norm, term.centered, term.scale
      if role == 'student' and not term.regressor:
        yield term.student, where
      if (
        role == 'teacher'
        and term.needs_teacher
        and changed == (None, 'none', False, 1)
      ):
        yield term.target, where
