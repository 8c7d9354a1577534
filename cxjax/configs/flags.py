"""What is wrong with the flags of a config, in one line."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from absl import flags
import ml_collections
from ml_collections.config_flags import config_flags

from cxjax import errors

# Of fields by type: how to say it, and what reads it. A text is as it is, and
# of a tuple's parts `limits.py` says more.
PARSERS: dict[type, tuple[str, flags.ArgumentParser]] = {
  bool: ('true or false', flags.BooleanParser()),
  int: ('a whole number', flags.IntegerParser()),
  float: ('a number', flags.FloatParser()),
}


def check(argv: Sequence[str]) -> None:
  """Raises UserError for a config file, a field or a value that cannot be.

  Args:
    argv: of the program, with `--config=FILE[:WORDS]` and `--config.F=VALUE`.
  """
  config = None
  argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
  for flag, value in _given(argv):
    if flag != 'config':
      if config is not None:  # Else absl says which must come first.
        _check_field(config, flag.split('.')[1:], flag, value)
      continue
    path = pathlib.Path((value or '').partition(':')[0])
    errors.require(
      path.suffix == '.py' and path.is_file(),
      f'--config={value or ""}: there is no such file. Give one that defines '
      'get_config, as --config=experiments/parity_mlp.py.',
    )
    found = config_flags.ConfigFileFlagParser('config').parse(value)
    errors.require(
      isinstance(found, ml_collections.ConfigDict),
      f'--config={value}: get_config returns a {type(found).__name__}; it must '
      'be an ml_collections.ConfigDict.',
    )
    config = found.to_dict()


def _given(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Name and value, if it has one, of every flag of the config."""
  for i, given in enumerate(argv[1:], 1):
    if given == '--':
      return
    name, found, value = given.lstrip('-').partition('=')
    if given.startswith('-') and name.partition('.')[0] == 'config':
      # The value may be the next word, where a field is not true or false.
      following = argv[i + 1] if i + 1 < len(argv) else None
      own = value if found else following
      lone = not found and (own is None or own.startswith('-'))
      yield name, None if lone else own


def _check_field(
  block: Mapping[str, Any], path: Sequence[str], flag: str, value: str | None
) -> None:
  given = f'--{flag}' + ('' if value is None else f'={value}')
  at, found = 'config', block
  for name in path:
    if '[' in name:  # Of a list; ml_collections knows.
      return
    errors.require(
      isinstance(found, Mapping), f'{given}: {at} has no fields, it is {found}.'
    )
    found = errors.lookup(f'field of {at}', name, found)
    at = f'{at}.{name}'
  if isinstance(found, Mapping):
    raise errors.UserError(
      f'{given}: {at} is a block; set its fields one by one, as '
      f'--{at}.{next(iter(found))}=VALUE.'
    )
  if value is None or type(found) not in PARSERS:
    return
  kind, parser = PARSERS[type(found)]
  try:
    parser.parse(value)
  except ValueError as error:
    raise errors.UserError(
      f'{given}: {at} is {kind}, as {str(found).lower()}.'
    ) from error
