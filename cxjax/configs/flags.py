"""Checks of the config flags: a one-line error for each mistake."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import importlib.util
import pathlib
import sys
import traceback
from typing import Any

from absl import flags
import ml_collections

from cxjax import errors

# How to describe a field of each type, and what parses it. A string is taken as
# it is; the elements of a tuple are checked by `ranges`.
PARSERS: dict[type, tuple[str, flags.ArgumentParser]] = {
  bool: ('true or false', flags.BooleanParser()),
  int: ('a whole number', flags.IntegerParser()),
  float: ('a number', flags.FloatParser()),
}
# Fields that have another name since an earlier release.
RENAMED = {
  'extracted.law': 'extracted.projection',
  'extracted.readout': 'extracted.regressor',
  'extracted.shared': 'extracted.shared_projection',
  'extracted.centred': 'extracted.centered',
  'extracted.positions': 'extracted.tokens',
  'progressive.accuracies': 'progressive.scores',
}


def check(argv: Sequence[str]) -> None:
  """Checks the config file and the fields that the flags set.

  Args:
    argv: the command line, with `--config=FILE[:WORDS]` and
      `--config.FIELD=VALUE`.

  Raises:
    UserError: the file is missing, raises or returns no config; a field does
      not exist; or a value has the wrong type.
  """
  config = None
  argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
  for flag, value in _given(argv):
    if flag == 'config':
      config = load(value or '').to_dict()
    elif config is not None:  # Otherwise absl asks for --config first.
      _check_field(config, flag.split('.')[1:], flag, value)


def load(value: str) -> ml_collections.ConfigDict:
  """Runs a config file.

  Args:
    value: `FILE`, or `FILE:WORDS`, whose words are the argument of get_config.

  Returns:
    The config.

  Raises:
    UserError: the file is missing, raises or returns no config.
  """
  name, colon, words = value.partition(':')
  path, flag = pathlib.Path(name), f'--config={value}'
  errors.require(
    path.suffix == '.py' and path.is_file(),
    f'{flag}: there is no such file. Give one that defines get_config, as '
    '--config=experiments/parity_mlp.py.',
  )
  try:
    found = _run(path, [words] if colon else [])
  except errors.UserError:
    raise
  except (Exception, SystemExit) as error:  # Whatever a user's file raises.
    raise errors.UserError(f'{flag}: {_where(error, path)}') from error
  errors.require(
    isinstance(found, ml_collections.ConfigDict),
    f'{flag}: get_config returns a {type(found).__name__}; it must be an '
    'ml_collections.ConfigDict.',
  )
  return found


def _run(path: pathlib.Path, words: list[str]) -> Any:
  """Executes a config file, and returns what its get_config returns."""
  name = 'config_config'  # As ml_collections names it.
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None
  assert spec.loader is not None
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  errors.require(
    hasattr(module, 'get_config'),
    f'--config={path}: the file does not define get_config. Add a function '
    'get_config that returns an ml_collections.ConfigDict.',
  )
  return module.get_config(*words)


def _where(error: BaseException, path: pathlib.Path) -> str:
  """Describes an error of a config file: file, line, type and message."""
  file, line = str(path), None
  folder = path.resolve().parent
  for frame in traceback.extract_tb(error.__traceback__):
    # The last frame may lie in a library; a config may import its neighbors.
    if pathlib.Path(frame.filename).resolve().parent == folder:
      file, line = frame.filename, frame.lineno
  text = str(error)
  if isinstance(error, SyntaxError):
    file, line, text = error.filename or file, error.lineno, error.msg
  if pathlib.Path(file).resolve() == path.resolve():
    file = str(path)  # As the flag has it.
  where = file if line is None else f'line {line} of {file}'
  message = ' '.join(text.split()) or 'no message'
  if isinstance(error, SystemExit):
    return f'{where} ends the program. It must return a config.'
  return f'{where} raises {type(error).__name__}: {message}'


def _given(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Yields the name and the value, if any, of every config flag."""
  for i, given in enumerate(argv[1:], 1):
    if given == '--':
      return
    name, found, value = given.lstrip('-').partition('=')
    if given.startswith('-') and name.partition('.')[0] == 'config':
      # The value may be the next word, unless the field is true or false.
      following = argv[i + 1] if i + 1 < len(argv) else None
      own = value if found else following
      lone = not found and (own is None or own.startswith('-'))
      yield name, None if lone else own


def _check_field(
  block: Mapping[str, Any], path: Sequence[str], flag: str, value: str | None
) -> None:
  """Raises UserError if a flag sets no field, or sets it to another type."""
  given = f'--{flag}' + ('' if value is None else f'={value}')
  at, found = 'config', block
  for i, name in enumerate(path):
    if '[' in name:  # An element of a sequence, which ml_collections checks.
      return
    errors.require(
      isinstance(found, Mapping), f'{given}: {at} has no fields, it is {found}.'
    )
    new = RENAMED.get('.'.join(path[: i + 1]))
    errors.require(
      name in found or new is None,
      f'{given}: {at}.{name} is now config.{new}. Set that field.',
    )
    found = errors.lookup(f'field of {at}', name, found)
    at = f'{at}.{name}'
  if isinstance(found, Mapping):
    raise errors.UserError(
      f'{given}: {at} is a block; set its fields one by one, as '
      f'--{at}.{next(iter(found), "FIELD")}=VALUE.'
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
