"""Reading `config.json`: the family of a model and its checked fields."""

import math
import pathlib

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import opening


def read(folder: pathlib.Path) -> tuple[base.Family, base.Config]:
  """The family and the config of a model.

  Args:
    folder: folder of the model.

  Returns:
    The family, and the config with its optional fields filled in.

  Raises:
    UserError: the file is missing or damaged, its family is not registered, or
      a field has a value that the family does not support.
  """
  path = folder / 'config.json'
  errors.require(
    path.exists(),
    f'{folder} has no config.json. It must be the folder of one model, as '
    'save_pretrained of transformers writes it.',
  )
  config = opening.read_object(path)
  kind = config.get('model_type')
  family = base.FAMILIES.get(kind) if isinstance(kind, str) else None
  if family is None:
    known = ', '.join(map(repr, base.FAMILIES))
    raise errors.UserError(
      f'{path} has model_type={kind!r}; only {known} can be read. Choose a '
      'model of that type.'
    )
  for name, only in family.fixed.items():
    value = config.get(name, only)
    errors.require(
      value == only,
      f'{path} has {name}={value!r}; only {only!r} is supported. Choose '
      'another model.',
    )
  config = {**family.defaults, **config}
  for name in family.sizes.values():
    _require_size(path, name, config.get(name))
  for name, default in family.defaults.items():
    if isinstance(default, float):
      _require_number(path, name, config[name])
    elif isinstance(default, bool):
      errors.require(
        isinstance(config[name], bool),
        f'{path} has {name}={config[name]!r}; it must be true or false. '
        'Restore the file.',
      )
    else:
      _require_size(path, name, config[name])
  return family, config


def _require_size(path: pathlib.Path, name: str, value: object) -> None:
  """Raises a UserError unless the value is a whole number of at least 1."""
  errors.require(
    type(value) is int and value >= 1,
    f'{path} has {name}={value!r}; it must be a whole number of at least 1. '
    'Restore the file.',
  )


def _require_number(path: pathlib.Path, name: str, value: object) -> None:
  """Raises a UserError unless the value is a number of at least 0."""
  errors.require(
    type(value) in (int, float) and 0 <= value < math.inf,  # type: ignore[operator]
    f'{path} has {name}={value!r}; it must be a finite number of at least 0. '
    'Restore the file.',
  )
