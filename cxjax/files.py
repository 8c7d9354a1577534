"""Small files of a run, each written whole or not at all.

Of several processes the first writes them, and the others do not.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from typing import Any

from absl import logging

from cxjax import errors
from cxjax.parallel import multihost

SHOWN = 12  # Fields that differ, in one line for people.


@contextlib.contextmanager
def written(path: pathlib.Path | str) -> Iterator[None]:
  """Whatever is done here writes `path`; if that cannot be, says so.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f'Cannot write {path}: {error.strerror}. Make room there, or choose '
      'another workdir.'
    ) from error


def write_text(path: pathlib.Path, text: str, own: bool = False) -> None:
  """Replaces `path` by `text` in one move, so that no reader sees half of it.

  Args:
    path: the file.
    text: what will be in it.
    own: of this process, whichever it is; else of the first alone.

  Raises:
    UserError: the folder cannot be written.
  """
  if not (own or multihost.is_first()):
    return
  temporary = path.with_name(path.name + '.tmp')
  with written(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('w') as f:
      f.write(text)
      f.flush()
      os.fsync(f.fileno())
    temporary.replace(path)


def write_json(path: pathlib.Path, value: Any, own: bool = False) -> None:
  """Writes `value` as indented JSON, as `write_text`."""
  write_text(path, json.dumps(value, indent=1) + '\n', own)


def read_json(path: pathlib.Path) -> Any:
  """The value of a JSON file.

  Raises:
    UserError: the file is damaged.
  """
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error}). Restore it, or remove its folder to '
      'start afresh.'
    ) from error


def digest(record: Any) -> str:
  """SHA-256 of a JSON value."""
  text = json.dumps(record, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write_sealed(path: pathlib.Path, record: Any) -> None:
  """Writes a JSON value with its digest, whole or not at all."""
  write_json(path, {'record': record, 'sha256': digest(record)})


def read_sealed(path: pathlib.Path) -> Any:
  """What `write_sealed` wrote.

  Raises:
    UserError: the file is damaged.
  """
  value = read_json(path)
  intact = isinstance(value, dict) and {'record', 'sha256'} <= value.keys()
  errors.require(
    intact and value['sha256'] == digest(value['record']),
    f'{path} is damaged. Restore it, or remove its folder to start afresh.',
  )
  return value['record']


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other runs of this machine out of a run's folder.

  The lock goes with the process, however that ends.

  Raises:
    UserError: another process has it, or the folder cannot be written.
  """
  if not multihost.is_first():
    yield
    return
  path = folder / 'lock'
  with written(path):
    folder.mkdir(parents=True, exist_ok=True)
    file = path.open('w')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise errors.UserError(
        f'{folder} is in use by another process. Wait for it, or choose '
        'another workdir.'
      ) from error
    except OSError as error:  # A mount without locks.
      logging.warning('%s cannot be locked: %s.', folder, error.strerror)
    yield


def _flatten(value: Any, prefix: str = '') -> dict[str, Any]:
  if isinstance(value, list) and any(isinstance(v, dict) for v in value):
    value = dict(enumerate(value))
  if not isinstance(value, dict):
    return {prefix: value}
  flat = {}
  for key, item in value.items():
    flat.update(_flatten(item, f'{prefix}.{key}' if prefix else key))
  return flat


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
  """The fields in which two configurations differ, for people; '' if none."""
  there, here = (
    _flatten(json.loads(json.dumps(value))) for value in (there, here)
  )
  differ = [
    f'{n} ({there.get(n, "absent")} there, {here.get(n, "absent")} here)'
    for n in {**there, **here}
    if there.get(n) != here.get(n)
  ]
  more = [f'and {len(differ) - SHOWN} more'] if len(differ) > SHOWN else []
  return ', '.join(differ[:SHOWN] + more)


def claim(folder: pathlib.Path, config: dict[str, Any]) -> None:
  """Makes `folder` the place of the run that `config` describes.

  Args:
    folder: made if it is not there.
    config: everything that the run depends on; written as `config.json`.

  Raises:
    UserError: the folder cannot be written, or holds a run of another
      configuration; names the fields that differ.
  """
  path = folder / 'config.json'
  if not path.exists():
    for name in ('checkpoints', 'summary.json'):
      errors.require(
        not (folder / name).exists(),
        f'{folder} holds a run whose config.json is missing. Restore it, or '
        'choose another workdir.',
      )
    write_json(path, config)
    return
  differ = differences(read_json(path), config)
  errors.require(
    not differ,
    f'{folder} belongs to another configuration. What differs: {differ}. '
    'Choose another workdir, or the configuration of this one.',
  )
