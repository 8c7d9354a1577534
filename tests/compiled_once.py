"""Programs, plans and digests that equal runs share in a process. Not a test.

A run that is resumed or repeated in a test traces and compiles what the run
before it did, which takes much of its time. Here it takes over what was made
for the same config, or for the same functions, as `tokens` tells them apart, at
equal shapes and settings. Parameters, rows and keys are arguments of the
programs, and may differ.
"""

import contextlib
import copy
import dataclasses
import functools
from unittest import mock

import jax

from cxjax import settings
from cxjax.configs import builders
from cxjax.configs import functions
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.training import compiled_steps
from cxjax.training import run_spec
import tokens

# By their tokens, in which all objects stay alive.
_programs: dict = {}
_planned: dict = {}
_plans: dict = {}


def _config_token(name, experiment, spec):
  """Decides the programs of a run from a config."""
  config = experiment.config.copy_and_resolve_references()
  texts = dict(experiment.task.fingerprints)
  with config.unlocked():
    config.teacher.folder = ''  # Decides arrays and their shapes.
    for field in ('source', 'folder', 'tokenizer') if texts else ():
      config.data[field] = ''  # Where the text is that the hashes are of.
  keys = spec.keys
  arrays = [spec.held_out, keys.init, keys.data, keys.stage]
  arrays += [spec.teacher.params] if spec.teacher else []
  return (
    name,
    str(experiment.pretrained and experiment.pretrained.module),
    config.to_json_best_effort(),
    tuple(sorted(texts.items())),
    str(settings.recorded()),
    tokens.shapes(arrays),
    spec.host.period,
    tuple((s.name, s.steps, s.checkpoint) for s in spec.stages),
  )


def _tagged(name):
  """A builder whose specifications know their token."""
  build = getattr(builders, name)

  @functools.wraps(build)
  def tagged(experiment, *args, **kwargs):
    spec = build(experiment, *args, **kwargs)
    if experiment.devices is None:
      vars(spec)['of_config'] = _config_token(name, experiment, spec)
    return spec

  return tagged


def _of_config(name):
  """A plan of a `RunSpec` from a config, made once for equal configs."""
  method = getattr(run_spec.RunSpec, name)

  @functools.wraps(method)
  def planned(self, *args):
    if 'of_config' not in vars(self) or args:
      return method(self, *args)
    key = name, vars(self)['of_config'], self.stored_targets
    if key not in _plans:
      _plans[key] = method(self)
    return list(_plans[key])

  return planned


def _digests_of_config(digests):
  """Digests of the functions of a run, made once for equal configs and rows."""

  @functools.wraps(digests)
  def digested(experiment, spec):
    if 'of_config' not in vars(spec):
      return digests(experiment, spec)
    rows = tokens.of(jax.device_get(experiment.held_out))
    pairs = tuple(  # Found in the teacher, where the config has none.
      (name, term.student, term.target)
      for stage in spec.stages
      for name, term in stage.named_terms.items()
    )
    key = vars(spec)['of_config'], spec.stored_targets, rows, pairs
    if key not in _plans:
      _plans[key] = digests(experiment, spec)
    return copy.deepcopy(_plans[key])

  return digested


def _settings():
  """The settings and the mesh, which decide a trace beside the arguments."""
  return str(settings.recorded()), jax.sharding.get_mesh()


def _spec_token(spec: run_spec.RunSpec):
  """Decides the programs of a run."""
  if 'of_config' in vars(spec):
    return vars(spec)['of_config'], spec.stored_targets
  keys = spec.keys.init, spec.keys.data, spec.keys.stage
  made = callable(spec.start)
  shapes = None if made else spec.start, spec.held_out, keys, spec.host.rows
  teacher = spec.teacher and (
    tokens.of(spec.teacher.apply),
    tokens.shapes(spec.teacher.params),
    spec.teacher.available,
    spec.teacher.heads is not None,
    spec.teacher.stored != '',
  )
  return (
    _settings(),
    teacher,
    tokens.shapes(shapes),
    made,
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

  def __init__(self, spec, options=None):
    begin(self, spec, options)
    with contextlib.suppress(tokens.Unknown, TypeError):
      key = _spec_token(spec), str(options)
      shared = _programs.setdefault(key, self._programs.compiled)
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


@contextlib.contextmanager
def afresh():
  """Makes plans and programs again, as another function has a name."""
  empty = (mock.patch.dict(kept, clear=True) for kept in (_plans, _programs))
  with contextlib.ExitStack() as stack:
    for one in empty:
      stack.enter_context(one)
    yield


def install():
  """Shares programs and plans from here on, in this process."""
  begin = compiled_steps.CompiledSteps.__init__
  for owner, name, value in (
    (builders, 'teacher_spec', _tagged('teacher_spec')),
    (builders, 'student_spec', _tagged('student_spec')),
    (functions, 'digests', _digests_of_config(functions.digests)),
    (run_spec.RunSpec, 'plan', _of_config('plan')),
    (run_spec.RunSpec, 'plan_with_costs', _of_config('plan_with_costs')),
    (compiled_steps.CompiledSteps, '__init__', _shared_programs(begin)),
    (stage_plan, 'plan_stage', _remembered(stage_plan.plan_stage)),
    (stage_plan, 'with_costs', _remembered(stage_plan.with_costs)),
  ):
    mock.patch.object(owner, name, value).start()
