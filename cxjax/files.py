"""Small files of a run, which are written atomically.

In a run of several processes, the first process writes them.
"""

from collections.abc import Iterator
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import stat
from typing import Any
from typing import BinaryIO

import jax

from cxjax import errors
from cxjax import folders

MAX_SHOWN = 12  # Number of differing fields that an error message lists.
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
MAX_BYTES = 2**30  # Size of the largest JSON file that is read.


def describe(error: OSError) -> str:
  """Says in one line which file the operating system refused, and why."""
  return f'{error.filename}: {error.strerror}. {_advice(error)}'


@contextlib.contextmanager
def written(path: pathlib.Path | str, place: str = 'workdir') -> Iterator[None]:
  """Turns an OSError of the block into a UserError that names `path`.

  Args:
    path: the file or folder that the block writes.
    place: the argument that the user chooses it by, for the message.

  Yields:
    Nothing.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f'Cannot write {path}: {error.strerror}. {_advice(error, place)}'
    ) from error


def is_forbidden(error: errors.UserError) -> bool:
  """True for an error of `written` where files may be read alone."""
  cause = error.__cause__
  return isinstance(cause, OSError) and cause.errno in FORBIDDEN


def _advice(error: OSError, place: str = 'workdir') -> str:
  """Says what to do about an error of the operating system."""
  if error.errno in (errno.EMFILE, errno.ENFILE):
    return 'Allow more open files (ulimit -n), and start again.'
  if error.errno == errno.EFBIG:
    return f'Allow larger files (ulimit -f), or choose another {place}.'
  if error.errno == errno.ELOOP:
    return f'It is a link: remove it, or choose another {place}.'
  if error.errno in FORBIDDEN:
    return f'Allow it, or choose another {place}.'
  if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
    return f'Something else is in its place: choose another {place}.'
  if error.errno == errno.ENOENT:
    return f'Choose another {place}.'
  return f'Make room there, or choose another {place}.'


def sync(path: pathlib.Path) -> None:
  """Blocks until a file, or the names in a folder, outlast a power loss.

  Args:
    path: the file or the folder.

  Raises:
    OSError: the file cannot be opened or written.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    # Some network file systems cannot sync a folder.
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise
  finally:
    os.close(descriptor)


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder and those above it; their names outlast a power loss.

  Args:
    path: the folder; it may exist.

  Raises:
    OSError: it cannot be made.
  """
  absent = [one for one in (path, *path.parents) if not one.exists()]
  path.mkdir(parents=True, exist_ok=True)
  for one in reversed(absent):
    sync(one.parent)


@contextlib.contextmanager
def replaced(path: pathlib.Path, place: str = 'workdir') -> Iterator[BinaryIO]:
  """Opens a new file that takes the place of another one, atomically.

  It outlasts a power loss. An exception leaves the other one as it was.

  Args:
    path: the file; its folder is made if it is missing.
    place: argument that the user chooses it by, for the message.

  Yields:
    The new file, open for writing.

  Raises:
    UserError: the folder cannot be written.
  """
  temporary = path.with_name(path.name + '.tmp')
  with written(path, place):
    make_folder(path.parent)
    # A link of this name, which somebody else made, is not followed.
    temporary.unlink(missing_ok=True)
    try:
      with temporary.open('xb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      temporary.replace(path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise
    sync(path.parent)


def write_bytes(
  path: pathlib.Path, content: bytes, place: str = 'workdir'
) -> None:
  """Writes a file atomically; it outlasts a power loss.

  Where nothing may be written, a file that has the content already will do.

  Args:
    path: the file; its folder is made if it is missing.
    content: the content.
    place: argument that the user chooses it by, for the message.

  Raises:
    UserError: the folder cannot be written.
  """
  try:
    with replaced(path, place) as file:
      file.write(content)
  except errors.UserError as error:
    if not is_forbidden(error) or not os.access(path, os.R_OK):
      raise
    if not path.is_file() or path.read_bytes() != content:
      raise


def write_text(
  path: pathlib.Path, text: str, own: bool = False, place: str = 'workdir'
) -> None:
  """Writes a text file in UTF-8, as `write_bytes` does.

  Args:
    path: the file; its folder is made if it is missing.
    text: the content.
    own: whether every process writes a file of its own; otherwise only the
      first process writes.
    place: argument that the user chooses it by, for the message.

  Raises:
    UserError: the folder cannot be written.
  """
  if own or jax.process_index() == 0:
    write_bytes(path, text.encode(), place)


def write_json(
  path: pathlib.Path, value: Any, own: bool = False, place: str = 'workdir'
) -> None:
  """Writes `value` as indented JSON, as `write_text` does."""
  write_text(path, json.dumps(value, indent=1) + '\n', own, place)


def read_text(path: pathlib.Path, on_error: str = 'strict') -> str:
  """Reads a UTF-8 file.

  Args:
    path: the file.
    on_error: treatment of bytes that are not UTF-8, as for `bytes.decode`.

  Returns:
    Its content.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no regular file, larger than `MAX_BYTES`, or not UTF-8.
  """
  # A fifo would block the opening without end.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  try:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
      raise ValueError('it is not a regular file')
    if status.st_size > MAX_BYTES:
      raise ValueError(f'{status.st_size} bytes, more than {MAX_BYTES}')
    with os.fdopen(descriptor, 'rb', closefd=False) as f:
      return f.read().decode('utf-8', on_error)
  finally:
    os.close(descriptor)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes a dict of the fields of a JSON object, each of which comes once."""
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'{twice!r} comes twice')
  return found


def parse_json(text: str) -> Any:
  """Parses JSON.

  Args:
    text: the JSON text.

  Returns:
    Its value.

  Raises:
    ValueError: it is malformed or too deep, or a field comes twice.
  """
  try:
    return json.loads(text, object_pairs_hook=_unique)
  except RecursionError as error:
    raise ValueError('it is nested too deeply') from error


def read_json(
  path: pathlib.Path, advice: str = 'remove its folder to start afresh'
) -> Any:
  """Reads a JSON file.

  Args:
    path: the file.
    advice: advice on a damaged file that cannot be restored.

  Returns:
    Its value.

  Raises:
    UserError: the file is damaged.
  """
  try:
    return parse_json(read_text(path))
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error}). Restore it, or {advice}.'
    ) from error


def digest(record: Any) -> str:
  """Returns the SHA-256 of a JSON value, in hexadecimal."""
  text = json.dumps(record, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write_with_digest(path: pathlib.Path, record: Any) -> None:
  """Writes a JSON value with its digest, atomically."""
  write_json(path, {'record': record, 'sha256': digest(record)})


def read_with_digest(path: pathlib.Path) -> Any:
  """Reads a JSON value that `write_with_digest` wrote.

  Args:
    path: the file.

  Returns:
    The value, without its digest.

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


def _flatten(value: Any, prefix: str = '') -> dict[str, Any]:
  """Flattens nested dicts and lists of dicts to dotted names."""
  if isinstance(value, list) and any(isinstance(v, dict) for v in value):
    value = dict(enumerate(value))
  if not isinstance(value, dict):
    return {prefix: value}
  flat = {}
  for key, item in value.items():
    flat.update(_flatten(item, f'{prefix}.{key}' if prefix else key))
  return flat


def differences(
  there: dict[str, Any],
  here: dict[str, Any],
  at: tuple[str, str] = ('there', 'here'),
) -> str:
  """Lists the fields in which two configurations differ.

  Args:
    there: the configuration that a file holds; any JSON value by name.
    here: the configuration of this run.
    at: words for where each of the two is.

  Returns:
    The fields with both values, at most `MAX_SHOWN` of them, digests last, and
    those of functions only if nothing else differs; '' if there are none.
  """
  there, here = (
    _flatten(json.loads(json.dumps(value))) for value in (there, here)
  )
  pairs = [
    (n, there.get(n, 'absent'), here.get(n, 'absent'))
    for n in {**there, **here}
    if there.get(n) != here.get(n)
  ]
  pairs.sort(key=_is_opaque)
  if pairs and not _is_opaque(pairs[0]):  # It changes functions made of it.
    made = lambda pair: pair[0].startswith('functions.') and _is_opaque(pair)
    pairs = [pair for pair in pairs if not made(pair)]
  differ = [_difference(*pair, at) for pair in pairs]
  more = [f'and {len(differ) - MAX_SHOWN} more'] * (len(differ) > MAX_SHOWN)
  return ', '.join(differ[:MAX_SHOWN] + more)


def _is_digest(value: Any) -> bool:
  return isinstance(value, str) and bool(re.fullmatch('[0-9a-f]{16}', value))


def _is_opaque(pair: tuple[str, Any, Any]) -> bool:
  """True for two digests, which say that a field differs and not how."""
  return _is_digest(pair[1]) and _is_digest(pair[2])


def _difference(name: str, there: Any, here: Any, at: tuple[str, str]) -> str:
  """A field and its two values; digests tell a reader nothing."""
  if _is_digest(there) and _is_digest(here):
    return f'{name} (another)'
  readable = lambda v: 'given' if _is_digest(v) else "''" if v == '' else v
  there, here = readable(there), readable(here)
  return f'{name} ({there} {at[0]}, {here} {at[1]})'


def claim_workdir(folder: pathlib.Path, config: dict[str, Any]) -> None:
  """Reserves `folder` for the run that `config` describes.

  Args:
    folder: the folder of the run; made if it is missing.
    config: everything that the result of the run depends on; written as
      `config.json`.

  Raises:
    UserError: the folder cannot be written, or holds a run of another
      configuration; the message names the fields that differ.
  """
  folders.check(folder)
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
    'Choose another workdir, or go back to the earlier configuration.',
  )
