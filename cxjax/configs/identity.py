"""Fields of a config that a run depends on, and those it does not."""

from typing import Any
from typing import TypeAlias

import ml_collections

from cxjax import errors
from cxjax import settings
from cxjax.methods import registry
from cxjax.methods import stored_output
from cxjax.parallel import agreement
from cxjax.tasks import base as tasks
from cxjax.training import run_spec
from cxjax.training import target_cache

Config: TypeAlias = ml_collections.ConfigDict


def teacher_config(config: Config) -> dict[str, Any]:
  """Fields that a teacher depends on; its `config.json`."""
  block = config.to_dict()
  names = ('seed', 'task', 'model', 'data', 'teacher')
  kept = {name: block[name] for name in names}
  del kept['teacher']['folder']
  kept['data'] = tasks.without_paths(config.task, kept['data'])
  return kept


def student_config(config: Config) -> dict[str, Any]:
  """Fields that a student depends on; its `config.json`."""
  block = config.to_dict()
  like = errors.lookup('method', config.method, registry.METHODS).like
  unread = set(registry.METHODS) - {config.method, like}
  block['data'] = tasks.without_paths(config.task, block['data'])
  block['mesh'].pop('cpu_devices', None)
  if config.cache.folder:
    # Where it lies changes nothing, nor does what it was made with.
    names = ['batches', 'fingerprint']
    if config.cache.output != stored_output.LOGITS:
      names.append('output')
    block['cache'] = {name: block['cache'][name] for name in names}
  else:
    del block['cache']
  return {name: v for name, v in block.items() if name not in unread}


def shared_config(config: Config) -> dict[str, Any]:
  """Fields in which the processes of a run must agree: all except paths."""
  block = config.to_dict()
  block['data'] = tasks.without_paths(config.task, block['data'])
  block['mesh'].pop('cpu_devices', None)
  for name in ('teacher', 'cache'):
    block[name]['folder'] = 'given' if block[name]['folder'] else ''
  return block


def require_same(config: Config, **flags: Any) -> None:
  """Compares a config over the processes of a run.

  Args:
    config: config with the fingerprints of its data.
    **flags: values of the other flags that decide the run, by name.

  Raises:
    UserError: a process has another config, data, flags or settings of JAX.
  """
  agreement.require_same(
    lambda: {
      **shared_config(config),
      **{f'--{name}': value for name, value in flags.items()},
      'settings': {**settings.RECORDED, **settings.recorded()},
    }
  )


def stored_config(config: Config, spec: run_spec.RunSpec) -> dict[str, Any]:
  """Fields that the stored targets of a run depend on.

  Its teacher, its batches and its stages, but not how students learn from
  them: rates, losses, weights and the like.
  """
  stages, rotated = target_cache.stages(spec, config.cache.output)
  names = ('method', 'batch_size', 'num_seeds', 'share_batches')
  block = config.to_dict()
  return {
    **{name: block[name] for name in names},
    **({'student': block['student']} if rotated else {}),
    **teacher_config(config),
    'stages': stages,
  }


def period(config: Config) -> int:
  """Number of batches that the stages read, again and again, if stored.

  Raises:
    UserError: more than there are steps.
  """
  batches = config.cache.batches or config.num_steps
  errors.require(
    1 <= batches <= config.num_steps,
    f'cache.batches={batches} must be from 1 to num_steps={config.num_steps}; '
    '0 is all of them.',
  )
  return batches


def check_stored(config: Config) -> None:
  """Raises UserError for settings of stored targets that do not work."""
  errors.require(
    config.method != 'supervised',
    'The method supervised learns the labels: it has no targets to store. '
    'Leave --cache_targets and cache.folder out.',
  )
  period(config)
