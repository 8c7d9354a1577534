"""Rotary positions in `config.json`: `rope_theta`, `rope_scaling` and others.

Files from before transformers 5 have `rope_theta` and `rope_scaling`; later
ones have `rope_parameters`, by kind of layer if the kinds differ.
"""

from collections.abc import Mapping
import math
from typing import Any

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.models import rotary

# Optional fields of families with rotary positions.
OPTIONAL: dict[str, tuple[type, Any]] = {
  'rope_theta': (base.Positive, None),
  'rope_scaling': (dict, None),
  'rope_parameters': (dict, None),
  'partial_rotary_factor': (float, None),
  'original_max_position_embeddings': (int, None),
}
KINDS = {
  'default': 'none',
  'linear': 'linear',
  'llama3': 'llama3',
  'yarn': 'yarn',
}
LENGTH = 'original_max_position_embeddings'
# Fields of a kind, beside its name and `rope_theta`, by those of `Rotary`.
FIELDS: dict[str, dict[str, str]] = {
  'none': {},
  'linear': {'factor': 'factor'},
  'llama3': {
    'factor': 'factor',
    'original_length': LENGTH,
    'low_factor': 'low_freq_factor',
    'high_factor': 'high_freq_factor',
  },
  'yarn': {
    'factor': 'factor',
    'original_length': LENGTH,
    'beta_fast': 'beta_fast',
    'beta_slow': 'beta_slow',
    'attention_factor': 'attention_factor',
    'truncate': 'truncate',
  },
}
# Fields without a default.
REQUIRED = ('factor', 'low_freq_factor', 'high_freq_factor')
MSCALES = ('mscale', 'mscale_all_dim')


def read(config: base.Config, theta: float) -> rotary.Rotary:
  """The rotary positions of a model whose layers have the same.

  Args:
    config: the config.
    theta: `rope_theta` if the file has none.

  Returns:
    The frequencies.

  Raises:
    UserError: a field is of a kind that is not known; names it.
  """
  old = config['rope_scaling']
  name = 'rope_scaling' if old else 'rope_parameters'
  fields = config[name] or {}
  found = config['rope_theta']
  return parse(config, name, fields, theta if found is None else found)


def read_pair(
  config: base.Config, thetas: Mapping[str, float], scaled: tuple[str, ...]
) -> dict[str, rotary.Rotary]:
  """The rotary positions of a model by kind of layer.

  Args:
    config: the config.
    thetas: `rope_theta` of each kind, as in 'full_attention', if
      `rope_parameters` has none.
    scaled: kinds to which `rope_scaling` applies.

  Returns:
    The frequencies of each kind.

  Raises:
    UserError: a field is of a kind that is not known; names it.
  """
  nested = config['rope_parameters'] or {}
  for name in nested:
    errors.require(
      name in thetas,
      f'config.json has rope_parameters.{name}; only {", ".join(thetas)} can '
      'be read. Choose another model.',
    )
  found = {}
  for kind, theta in thetas.items():
    name, fields = f'rope_parameters.{kind}', nested.get(kind) or {}
    errors.require(
      isinstance(fields, dict),
      f'config.json has {name}={fields!r}; it must be an object. Restore the '
      'file.',
    )
    if config['rope_scaling'] and kind in scaled:
      name, fields = 'rope_scaling', {**fields, **config['rope_scaling']}
    found[kind] = parse(config, name, fields, theta)
  return found


def parse(
  config: base.Config, name: str, fields: Mapping[str, Any], theta: float
) -> rotary.Rotary:
  """The rotary positions of an object in a config.

  Args:
    config: the config.
    name: name of the object, for messages.
    fields: the object.
    theta: `rope_theta` if the object has none.

  Returns:
    The frequencies.

  Raises:
    UserError: a field is of a kind that is not known; names it.
  """
  kind = fields.get('rope_type', fields.get('type', 'default'))
  errors.require(
    isinstance(kind, str) and kind in KINDS,
    f'config.json has {name}.rope_type={kind!r}; only '
    f'{", ".join(map(repr, KINDS))} can be read. Choose another model.',
  )
  scaling = KINDS[kind]
  names = FIELDS[scaling]
  known = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}
  known |= {*names.values(), *(MSCALES if scaling == 'yarn' else ())}
  for field, value in fields.items():
    errors.require(
      field in known or value is None,
      f'config.json has {name}.{field}={value!r}, which {kind!r} does not '
      'have here. Choose another model.',
    )
  _require_whole(name, {**config, **fields})
  if scaling != 'none':
    for field in REQUIRED:
      errors.require(
        field not in names.values() or fields.get(field) is not None,
        f'config.json has no {name}.{field}, which {kind!r} needs. Restore the '
        'file.',
      )
  values = {k: fields.get(v) for k, v in names.items()}
  if 'original_length' in values:
    lengths = config[LENGTH], values['original_length']
    given_length = next((n for n in lengths if n is not None), None)
    if given_length is None:
      given_length = config['max_position_embeddings']
    values['original_length'] = given_length
  if scaling == 'yarn':
    if values['attention_factor'] is None:
      values['attention_factor'] = _attention_factor(fields)
    # As in transformers, where it is true only if the file lacks it.
    if values['truncate'] is None and 'truncate' in fields:
      values['truncate'] = False
  given = {k: v for k, v in values.items() if v is not None}
  found = fields.get('rope_theta')
  return rotary.Rotary(theta if found is None else found, scaling, **given)


def _require_whole(name: str, fields: Mapping[str, Any]) -> None:
  """Raises a UserError if only a part of each head is rotated."""
  part = fields.get('partial_rotary_factor')
  errors.require(
    part is None or part == 1,
    f'config.json has partial_rotary_factor={part!r} ({name}); only heads that '
    'are rotated as a whole can be read. Choose another model.',
  )


def _attention_factor(fields: Mapping[str, Any]) -> float:
  """YaRN's factor of queries and keys, where the file does not say it."""

  def number(name: str) -> float:
    value = fields.get(name)
    errors.require(
      value is None or (type(value) in (int, float) and math.isfinite(value)),
      f'config.json has {name}={value!r}; it must be a number. Restore the '
      'file.',
    )
    return float(value or 0)

  factor, *scales = map(number, ('factor', *MSCALES))
  value = lambda scale: (
    0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0
  )
  return value(scales[0]) / value(scales[1]) if all(scales) else value(1)


def write(found: rotary.Rotary) -> dict[str, Any] | None:
  """The object `rope_scaling` of frequencies; None if they are not scaled."""
  if found.scaling == 'none':
    return None
  fields = {v: getattr(found, k) for k, v in FIELDS[found.scaling].items()}
  if fields.get('truncate', False):
    del fields['truncate']
  return {'rope_type': found.scaling, **fields}


def write_pair(
  full: rotary.Rotary, local: rotary.Rotary, plain: bool
) -> dict[str, Any]:
  """Fields of a config with the scalings of two kinds of layers.

  Args:
    full: frequencies in blocks that see the whole text.
    local: frequencies in blocks with a window.
    plain: whether `rope_scaling`, which releases of transformers before 5 read
      too, says all.

  Returns:
    `rope_scaling`, or `rope_parameters` by kind of layer.
  """
  if plain:
    return {'rope_scaling': write(full)}
  kinds = {'full_attention': full, 'sliding_attention': local}
  return {
    'rope_scaling': None,
    'rope_parameters': {
      kind: {
        'rope_theta': one.theta,
        **(write(one) or {'rope_type': 'default'}),
      }
      for kind, one in kinds.items()
    },
  }
