"""Ranges of the numeric fields of a config, by name.

Relations between fields are checked where the fields are used together.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import math
import numbers
import pathlib
import re
import traceback
from typing import Any

from absl import logging
import ml_collections

from cxjax import arguments
from cxjax import errors
from cxjax import folders
from cxjax.api import shrink
from cxjax.configs import defaults
from cxjax.methods import checkpoint_rules
from cxjax.methods import curricula
from cxjax.methods import registry
from cxjax.methods import stored_output
from cxjax.models import rotary
from cxjax.training import optimizers

COUNT = arguments.Range(1, 2**31 - 1, integer=True)
# What is made one by one, in Python.
FEW = arguments.Range(1, 10_000, integer=True)
COUNT_OR_0 = arguments.Range(0, 2**31 - 1, integer=True)
POSITIVE = arguments.Range(0, ends=(False, False))
NOT_NEGATIVE = arguments.Range(0)
SHARE = arguments.Range(0, 1, ends=(False, False))
RATE = arguments.Range(0, 1, ends=(True, False))
FRACTION = arguments.Range(0, 1)
FINITE = arguments.Range(-math.inf)  # A value of any metric.
# By the full name of a field, or else by its last word. The elements of a
# sequence have the range of its field.
RANGES = {
  'seed': arguments.Range(0, 2**32 - 1, integer=True),
  'cpu_devices': FEW,
  'num_seeds': FEW,
  'batch_size': COUNT,
  'microbatches': COUNT,
  'num_steps': COUNT,
  'eval_size': arguments.Range(1, 10**7, integer=True),
  'log_every': COUNT,
  'eval_every': COUNT,
  'save_every': COUNT,
  'save_minutes': NOT_NEGATIVE,
  'save_at': FINITE,
  'stop_at': arguments.Range(-math.inf, infinite=True, optional=True),
  'overrun': NOT_NEGATIVE,
  'keep': COUNT_OR_0,
  'patience': COUNT_OR_0,
  'lookahead': COUNT_OR_0,
  'learning_rate': POSITIVE,
  'rate_factor': POSITIVE,
  **optimizers.NUMBERS,
  'temperature': NOT_NEGATIVE,
  'alpha': FRACTION,
  'top_k': COUNT_OR_0,
  'share': SHARE,
  'steps': COUNT,
  'scores': FINITE,
  'count': COUNT_OR_0,
  'checkpoints': COUNT_OR_0,
  **{f'{name}.width': COUNT_OR_0 for name in registry.having('width')},
  **{f'{name}.scale': POSITIVE for name in registry.having('scale')},
  **{
    f'{name}.checkpoint': arguments.Range(-1, 2**31 - 1, integer=True)
    for name in registry.having('checkpoint')
  },
  'layer': COUNT,
  'joint.weight': POSITIVE,
  'fade': FRACTION,
  'cache.batches': COUNT_OR_0,
  'student.calibration': arguments.Range(1, shrink.MOST_BATCHES, integer=True),
  'width': COUNT,
  'depth': FEW,
  'heads': FEW,
  'kv_heads': COUNT_OR_0,
  'mlp_width': COUNT_OR_0,
  'theta': rotary.THETA,
  'max_length': COUNT_OR_0,
  'init_std': arguments.Range(0, 1e30, ends=(False, True)),
  'dropout': RATE,
  'd': arguments.Range(1, 10**6, integer=True),
  'k': COUNT,
  'mask_rate': SHARE,
  'held_out': SHARE,
  # Larger ones, beyond any tokenizer, end in an abort of its library.
  'vocab_size': arguments.Range(1, 10**7, integer=True),
  'length': arguments.Range(1, 2**22, integer=True),
  'shards': FEW,
}
# Fields that the code which reads them checks, because it also serves callers
# without a config.
FREE = frozenset(
  {
    # `mesh.make`.
    'mesh.data',
    'mesh.fsdp',
    'mesh.model',
    'mesh.seed',
    # `grammar.Grammar`: one of its symbols.
    'data.start',
    # `Stage` and `Term`.
    'custom.stages',
  }
)


CHOICES = {
  'student.start': ('random', 'teacher'),
  'cache.output': stored_output.KINDS,
  'progressive.rule': checkpoint_rules.RULES,
  **{f'{name}.ending': curricula.ENDINGS for name in registry.having('ending')},
}
MISSING = (
  'The config has no field {!r}. Add it to the config file, as those of '
  'experiments/ have it.'
)
# Fields whose elements have the range.
LISTS = frozenset({'save_at', 'steps', 'scores', 'checkpoints', 'layers'})
# Fields of tasks and models that are no numbers.
FLAGS = frozenset({'tied', 'remat', 'whole_files', 'padded_vocab'})
TEXTS = frozenset(
  {'task', 'model', 'source', 'tfds_folder', 'tokenizer', 'folder', 'dtype'}
  | {'field', 'prompt_field', 'completion_field', 'begin_token', 'end_token'}
)


def check(config: Mapping[str, Any]) -> None:
  """Checks every field of a config, in all its blocks.

  Args:
    config: values by field; a block is a mapping.

  Raises:
    UserError: a field is missing, or has another type than its default; a
      number is out of its range or NaN; or a value cannot be written as JSON.
  """
  known = defaults.get_config('extracted').to_dict()
  known.update(task='', model='', data={})
  fields = known.pop('student')
  if 'student' in config:  # A teacher is trained without.
    # A block for a model of one's own may lack them.
    given = config['student']
    known['student'] = {
      name: value
      for name, value in fields.items()
      if isinstance(given, Mapping) and name in given
    }
  _check_fields(config, known, '')
  try:
    check_values(config)
  except RecursionError as error:
    raise errors.UserError(
      'A block of the config holds itself, or too many within each other. Use '
      'a few levels.'
    ) from error


def warn_of_unread(config: Mapping[str, Any]) -> None:
  """Warns of fields that another optimizer reads than the one that is named.

  They may be those of the file, whose optimizer a flag replaces.
  """
  blocks = {'': config, 'teacher.': config['teacher']}
  for full, block in blocks.items():
    block = block['optimizer']
    for field, readers in optimizers.unread(block).items():
      logging.warning(
        '%soptimizer.%s=%s is not read: it is a setting of %s, and '
        '%soptimizer.name is %s.',
        full,
        field,
        block[field],
        readers,
        full,
        block['name'],
      )


def _check_fields(
  config: Mapping[str, Any], known: Mapping[str, Any], prefix: str
) -> None:
  """Raises UserError for a field that is missing or of another type."""
  for name, default in known.items():
    full = f'{prefix}{name}'
    errors.require(
      name in config,
      MISSING.format(full),
    )
    if isinstance(default, Mapping):
      errors.require(
        isinstance(config[name], Mapping),
        f'{full}={config[name]!r} must be a block of fields.',
      )
      _check_fields(config[name], default, f'{full}.')
    elif full not in FREE:
      _check_type(full, config[name], default)


def _check_type(full: str, value: Any, default: Any) -> None:
  """Raises UserError for a value of another type than the default."""
  if isinstance(default, bool):
    arguments.flag(full, value)
  elif isinstance(default, str):
    errors.require(
      isinstance(value, str), f'{full}={value!r} must be a string.'
    )
  elif isinstance(default, tuple):
    errors.require(
      isinstance(value, Sequence) and not isinstance(value, str | bytes),
      f'{full}={value!r} must be a list, as (1, 2).',
    )
  else:
    _check_scalar(full, value)


def _check_scalar(full: str, value: Any) -> None:
  errors.require(
    value is None or isinstance(value, numbers.Real | str),
    f'{full}={value!r} must be one value, not a {type(value).__name__}.',
  )


@contextlib.contextmanager
def named_fields() -> Iterator[None]:
  """Raises UserError for a field that a task or model reads, and is missing."""
  try:
    yield
  except (AttributeError, KeyError) as error:
    name = missing_field(error)
    if name is None:
      raise
    raise errors.UserError(MISSING.format(name)) from error


def missing_field(error: BaseException) -> str | None:
  """Name of the field that a ConfigDict lacks, if an error is of one."""
  if not isinstance(error, AttributeError | KeyError):
    return None
  last = traceback.extract_tb(error.__traceback__)[-1].filename
  package = str(ml_collections.__file__)
  if pathlib.Path(package).parent not in pathlib.Path(last).parents:
    return None
  found = re.search("'([^']+)'", str(error))
  return found[1] if found else str(error)


def check_values(config: Mapping[str, Any], prefix: str = '') -> None:
  """Checks the values of all fields of a config, by their names.

  Args:
    config: values by field; a block is a mapping.
    prefix: full name of the block, with a dot.

  Raises:
    UserError: a number is out of its range or NaN, a value has another type
      than its name says, or cannot be written as JSON.
  """
  for name, value in config.items():
    full = f'{prefix}{name}'
    allowed = RANGES.get(full, RANGES.get(name))
    one = allowed is not None or name in FLAGS or name in TEXTS
    if isinstance(value, Mapping) and not one:
      check_values(value, f'{full}.')
    elif full in FREE:
      if full == 'custom.stages':
        _check_json(full, value)
      else:
        _check_scalar(full, value)
    else:
      if name in FLAGS:
        arguments.flag(full, value)
      if name in TEXTS:
        _check_type(full, value, '')
      if name == 'folder' and value:
        folders.check(value, full)
      if full in CHOICES:
        errors.lookup(full, value, dict.fromkeys(CHOICES[full]))
      if allowed is not None and name not in LISTS:
        _check_scalar(full, value)
      _check_value(full, value, allowed)


def _check_value(
  full: str, value: Any, allowed: arguments.Range | None
) -> None:
  """Raises UserError for a value, or an element of one, that is not allowed."""
  listed = isinstance(value, Sequence) and not isinstance(value, str)
  for one in value if listed else (value,):
    wanted = None
    if allowed is not None and one not in allowed:
      wanted = str(allowed)
    elif isinstance(one, str) and '\0' in one:
      wanted = 'a string without null characters'
    # A run whose config has NaN would never be found to be the same run.
    elif isinstance(one, float) and math.isnan(one):
      wanted = 'a number'
    if wanted is not None:  # The text of a long list takes its time.
      wrong = f': {one!r} is not' if listed else ' must be'
      raise errors.UserError(f'{full}={value!r}{wrong} {wanted}.')
  _check_json(full, value)


def _check_json(full: str, value: Any) -> None:
  """Raises UserError for a value that cannot be written as JSON."""
  try:
    json.dumps(value)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'{full}={value!r} cannot be written as JSON. Give numbers, strings, '
      'True, False, None, or lists of them.'
    ) from error
