"""Programs and plans that equal runs share in a process. Not a test.

A run that is resumed or repeated in a test traces and compiles what the run
before it did, which takes much of its time. Here it takes over what was made
for the same functions, shapes and settings, as `tokens` tells them apart.
Parameters, rows and keys are arguments of the programs, and may differ.
"""

import contextlib
import dataclasses
import functools
from unittest import mock

import jax

from cxjax import settings
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.training import compiled_steps
from cxjax.training import run_spec
import tokens

# By their tokens, in which all objects stay alive.
_programs: dict = {}
_planned: dict = {}


def _settings():
  """What decides a trace beside the arguments."""
  return str(settings.recorded()), jax.sharding.get_mesh()


def _spec_token(spec: run_spec.RunSpec):
  """Decides the programs of a run."""
  keys = spec.keys.init, spec.keys.data, spec.keys.stage
  shapes = spec.start, spec.held_out, keys, spec.host.rows
  teacher = spec.teacher and (
    tokens.of(spec.teacher.apply),
    tokens.shapes(spec.teacher.params),
    spec.teacher.available,
  )
  return (
    _settings(),
    teacher,
    tokens.shapes(shapes),
    spec.host.loader is None,
    spec.host.period,
    spec.loop.log_every,
    tokens.of(
      (
        spec.student,
        [(s.objective, s.name, s.steps, s.checkpoint) for s in spec.stages],
        spec.draw,
        spec.batch_size,
        spec.optimizer,
        spec.layout,
        spec.metrics,
        spec.teacher_metrics,
        spec.lookahead,
        spec.microbatches,
        spec.trainable,
      )
    ),
  )


def _shared_programs(begin):
  """`CompiledSteps.__init__` that takes over programs."""

  def __init__(self, spec):
    begin(self, spec)
    with contextlib.suppress(tokens.Unknown, TypeError):
      shared = _programs.setdefault(_spec_token(spec), self._programs.compiled)
      self._programs.compiled = shared

  return __init__


def _without_length(first):
  """A stage, or its plan, without what decides no shape."""
  if isinstance(first, stage_lib.Stage):
    return dataclasses.replace(first, steps=1, checkpoint=None)
  return dataclasses.replace(first, stage=_without_length(first.stage))


def _remembered(function):
  """`plan_stage` or `with_costs`, once for equal arguments."""

  @functools.wraps(function)
  def remembered(*args, **kwargs):
    first, *others = args
    alike = _without_length(first)
    try:
      found = tokens.of((alike, *others, kwargs), True)
      key = function.__name__, _settings(), found
      known = key in _planned
    except (tokens.Unknown, TypeError):  # There is an object without a hash.
      return function(*args, **kwargs)
    if not known:
      _planned[key] = function(*args, **kwargs)
    stage = first if isinstance(first, stage_lib.Stage) else first.stage
    return dataclasses.replace(_planned[key], stage=stage)

  return remembered


def install():
  """Shares programs and plans from here on, in this process."""
  begin = compiled_steps.CompiledSteps.__init__
  for owner, name, value in (
    (compiled_steps.CompiledSteps, '__init__', _shared_programs(begin)),
    (stage_plan, 'plan_stage', _remembered(stage_plan.plan_stage)),
    (stage_plan, 'with_costs', _remembered(stage_plan.with_costs)),
  ):
    mock.patch.object(owner, name, value).start()
