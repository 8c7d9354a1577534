"""Programs that runs of one config share in a process. Not a test.

A run that is resumed or repeated in a test traces and compiles what the run
before it did, which takes much of its time. Here it takes over what was made
for the same config, shapes and settings. All arrays are arguments of the
programs, so that parameters, rows and keys may differ.
"""

from unittest import mock

import jax
import jax.numpy as jnp

from cxjax import settings
from cxjax.configs import builders
from cxjax.training import compiled_steps
from cxjax.training import run_spec

# Programs and costed plans, by what decides them.
_programs: dict = {}
_plans: dict = {}


def _key(name, experiment, spec):
  """Key of the programs of a specification from a config."""
  config = experiment.config.copy_and_resolve_references()
  with config.unlocked():
    config.teacher.folder = ''  # Decides arrays and their shapes.
  keys = spec.keys
  arrays = [spec.held_out, keys.init, keys.data, keys.stage, spec.start]
  arrays += [spec.teacher.params] if spec.teacher else []
  shape = lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf)))
  return (
    name,
    str(experiment.pretrained and experiment.pretrained.module),
    config.to_json_best_effort(),
    str(settings.recorded()),
    str(jax.tree.map(shape, arrays)),
    spec.host.period,
    tuple((s.name, s.steps, s.checkpoint) for s in spec.stages),
  )


def _tagged(name):
  """A builder whose specifications know their key."""
  build = getattr(builders, name)

  def tagged(experiment, *args, **kwargs):
    spec = build(experiment, *args, **kwargs)
    if experiment.devices is None:
      vars(spec)['compiled_once'] = _key(name, experiment, spec)
    return spec

  return tagged


def _remembered(name):
  """A method of `RunSpec` without arguments, once for equal keys."""
  method = getattr(run_spec.RunSpec, name)

  def remembered(self, *args):
    if 'compiled_once' not in vars(self) or args:
      return method(self, *args)
    key = name, vars(self)['compiled_once']
    if name == 'costed_plan':
      key += (self.stored_targets,)
    if key not in _plans:
      _plans[key] = method(self)
    return list(_plans[key])

  return remembered


def install():
  """Shares programs from here on, in this process."""
  begin = compiled_steps.CompiledSteps.__init__

  def __init__(self, spec):
    begin(self, spec)
    if 'compiled_once' in vars(spec):
      key = vars(spec)['compiled_once'], spec.stored_targets
      shared = _programs.setdefault(key, self._programs.compiled)
      self._programs.compiled = shared

  for name in ('plan', 'costed_plan'):
    plan = _remembered(name)
    mock.patch.object(run_spec.RunSpec, name, plan).start()
  for owner, name, value in (
    (builders, 'teacher_spec', _tagged('teacher_spec')),
    (builders, 'student_spec', _tagged('student_spec')),
    (compiled_steps.CompiledSteps, '__init__', __init__),
  ):
    mock.patch.object(owner, name, value).start()
