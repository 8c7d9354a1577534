"""Checks of the config flags: a one-line error for each mistake."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_dict

from cxjax import errors
from cxjax.training import signals

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
  config, seen = None, ''
  try:
    argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'A --flagfile is not UTF-8: {error.reason} at byte {error.start}. Write '
      'a flag on each of its lines.'
    ) from error
  for flag, value in _given(argv):
    if flag == 'config':
      errors.require(
        not seen,
        f'--config={value} comes after --{seen}, a field of another. Give one '
        '--config, and its fields after it.',
      )
      config = _defaults(load(value or ''), flag, value)
    elif config is not None:  # Otherwise absl asks for --config first.
      seen = flag
      _check_field(config, flag.split('.')[1:], flag, value)


def _defaults(
  config: ml_collections.ConfigDict, flag: str, value: str | None
) -> dict[str, Any]:
  """The values of a config file."""
  try:
    return dict(config.to_dict())
  except config_dict.RequiredValueError as error:
    raise errors.UserError(
      f'--{flag}={value}: a placeholder with required=True has no value. Give '
      'every field a default.'
    ) from error


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
    path.suffix == '.py' and _is_file(path),
    f'{flag}: there is no such file. Give one that defines get_config, as '
    '--config=experiments/parity_mlp.py.',
  )
  try:
    found = _run(path, [words] if colon else [])
  except (errors.UserError, signals.Interrupted):
    raise
  except BaseException as error:  # Whatever a user's file raises.
    raise errors.UserError(f'{flag}: {_where(error, path)}') from error
  if inspect.iscoroutine(found):
    found.close()  # Otherwise Python warns that nobody awaited it.
  # A frozen config is one as well, which no flag could change.
  errors.require(
    isinstance(found, ml_collections.ConfigDict)
    and not isinstance(found, ml_collections.FrozenConfigDict),
    f'{flag}: get_config returns a {type(found).__name__}; it must be an '
    'ml_collections.ConfigDict.',
  )
  errors.require(
    len(found) > 0,
    f'{flag}: get_config returns a config without fields. It must have those '
    'of experiments/.',
  )
  return found


def _is_file(path: pathlib.Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # A name that is too long, or a folder without permission.
    return False


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
    frozen = frame.filename.startswith('<')
    if not frozen and pathlib.Path(frame.filename).resolve().parent == folder:
      file, line = frame.filename, frame.lineno
  try:
    text = str(error)
  except Exception:  # A class of the file whose own message fails.
    text = ''
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
    if '[' in name:  # The fields of an element are checked by ml_collections.
      _check_element(found, name, given, at, last=i + 1 == len(path))
      return
    errors.require(
      isinstance(found, Mapping), f'{given}: {at} has no fields, it is {found}.'
    )
    new = RENAMED.get('.'.join(path[: i + 1]))
    errors.require(
      name in found or new is None,
      f'{given}: {at}.{name} is now config.{new}. Set that field.',
    )
    if not i:
      _check_nested(name, given, found)
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


def _check_nested(name: str, given: str, config: Any) -> None:
  """Raises UserError for a field of a block that is given without the block."""
  if name in config or not isinstance(config, Mapping):
    return
  plain = lambda name: name.replace('_', '').replace('-', '').lower()
  blocks = [
    f'config.{block}.{field}'
    for block, fields in config.items()
    if isinstance(fields, Mapping)
    for field in fields
    if plain(field) == plain(name)
  ]
  own = [f for f in config if plain(f) == plain(name)]
  errors.require(
    bool(own) or not blocks,
    f'{given}: config has no field {name!r}. Did you mean '
    f'{" or ".join(blocks)}?',
  )


def _check_element(
  block: Any, name: str, given: str, at: str, last: bool
) -> None:
  """Raises UserError if `FIELD[INDEX]` names no element, or one of a tuple."""
  field = name.partition('[')[0]
  errors.require(
    isinstance(block, Mapping), f'{given}: {at} has no fields, it is {block}.'
  )
  found = errors.lookup(f'field of {at}', field, block)
  whole = f'Set all of it, as --{at}.{field}="(1, 2)".'
  errors.require(
    bool(re.fullmatch(r'(\[[0-9]{1,9}\])+', name[len(field) :])),
    f'{given}: an element is named by its number, as {field}[0]. {whole}',
  )
  for index in map(int, re.findall('[0-9]+', name[len(field) :])):
    holder = found
    size = len(found) if isinstance(found, list | tuple) else 0
    errors.require(
      index < size,
      f'{given}: {at}.{field} is {found!r}, which has no element {index}. '
      f'{whole}',
    )
    found = holder[index]
  errors.require(
    not last or isinstance(holder, list),
    f'{given}: the elements of a tuple cannot be set one by one. {whole}',
  )
