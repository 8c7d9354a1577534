"""Options of methods with several values each, for `experiments.map --vary`."""

from collections.abc import Sequence
from typing import Any

from cxjax import errors
from cxjax.configs import ranges
from cxjax.methods import curricula
from cxjax.methods import registry


def read(text: str) -> tuple[str, list[str]]:
  """The option and the values of --vary.

  Args:
    text: value of the flag, as 'share=0.05,0.1'.

  Returns:
    The name of the option, and its values as they were written.

  Raises:
    UserError: there is no option or no value.
  """
  option, _, rest = text.partition('=')
  values = rest.split(',')
  errors.require(
    bool(option) and all(values) and len(set(values)) == len(values),
    f'--vary={text} must be an option and different values, as share=0.05,0.1.',
  )
  return option, values


def varied(
  methods: dict[str, dict[str, Any]], option: str, values: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Each method that has an option, once for each of its values.

  Args:
    methods: options of each method, as `compare` takes them.
    option: name of the option, of `curricula` with hidden stages.
    values: values of the option, as they are written.

  Returns:
    The methods, those with the option by names as 'extracted share=0.1'.

  Raises:
    UserError: no method has the option, or a value is not one of the option.
  """
  found = {}
  for name, options in methods.items():
    known = registry.options(options['method'])
    if 'ending' not in known or option not in known:
      found[name] = options
      continue
    for value in values:
      read = _value(option, value, known[option])
      _check(options['method'], option, read)
      found[f'{name} {option}={value}'] = {**options, option: read}
  errors.require(
    found.keys() != methods.keys(),
    f'--vary={option}: none of the methods {", ".join(methods)} has this '
    'option of hidden stages; extracted has '
    f'{", ".join(registry.options("extracted"))}.',
  )
  return found


def _value(option: str, text: str, default: Any) -> Any:
  """A value of the type of the default."""
  kind = type(default)
  try:
    if kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    if kind in (int, float, str):
      return kind(text)
  except (KeyError, ValueError):
    pass
  raise errors.UserError(
    f'--vary={option}={text}: {text!r} must be a {kind.__name__}, as '
    f'{default!r}, the default.'
    if kind in (bool, int, float, str)
    else f'--vary={option}: it is a {kind.__name__}, and only numbers, names, '
    'true and false are varied.'
  )


def _check(method: str, option: str, value: Any) -> None:
  """Raises UserError for a value that a method does not take."""
  one = registry.METHODS[method]
  block = method if option in one.options else one.like
  ranges.check_values({option: value}, f'{block}.')
  if isinstance(value, str):  # A name, which the curriculum looks up.
    name = 'hidden_loss' if option == 'loss' else option
    curricula.extracted((('a', 'b'),), (1, 1), **{name: value})
