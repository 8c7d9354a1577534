"""Checks of the folders of runs, of stored targets and of teachers."""

import os
import pathlib
import re
import stat

from cxjax import errors

# Orbax reads brackets and two stars as a pattern, and a backslash as a
# separator.
_PATTERN = re.compile(r'\\|\*\*|\[.*\]')
_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:')


def check(
  folder: pathlib.Path | str, what: str = 'The workdir', write: bool = False
) -> None:
  """Checks that a folder's name is one that a run can have.

  Args:
    folder: the folder; it need not exist.
    what: name of the folder in the message: a flag or a field.
    write: whether something is written to it in any case.

  Raises:
    UserError: the path is a URL, begins with the home of a user as `~`, has
      characters that checkpoints cannot have in their paths, is too long, lies
      within a checkpoint, or something else than a folder is in its place.
  """
  shown, path = f'{what} {ascii(str(folder))}', pathlib.Path(folder)
  first = path.parts[0] if path.parts else ''
  errors.require(
    not any(map(_SCHEME.fullmatch, path.parts)),
    f'{shown} is no local path. Mount the bucket (gcsfuse for gs://), and give '
    'the folder.',
  )
  errors.require(
    not first.startswith('~') or os.path.expanduser(first) == first,
    f'{shown} begins with ~, which only a shell expands. Give '
    f'{ascii(os.path.expanduser(path))} in its place.',
  )
  try:
    whole = path.absolute()
    name = str(whole).encode()
    longest = max(map(len, map(os.fsencode, whole.parts)))
  except UnicodeError as error:
    raise errors.UserError(
      f'{shown} is not UTF-8. Choose another name.'
    ) from error
  errors.require(
    b'\0' not in name and not _PATTERN.search(str(whole)),
    f'{what} {ascii(str(whole))} has **, [...], a backslash or a null '
    'character in its path, which checkpoints cannot have. Choose another '
    'name.',
  )
  errors.require(
    longest <= 255 and len(name) <= 3500,
    f'{shown[: len(what) + 40]}... is too long: a name may have 255 bytes, a '
    'path 3500. Choose a shorter one.',
  )
  for parent in (whole, *whole.parents):
    errors.require(
      not re.fullmatch('[0-9]{9,}', parent.name)
      or parent.parent.name != 'checkpoints',
      f'{shown} lies within the checkpoint {parent}, which it would damage. '
      'Choose another folder.',
    )
  _check_place(whole, shown, os.X_OK | (os.W_OK if write else 0))


def _check_place(whole: pathlib.Path, shown: str, mode: int) -> None:
  """Raises UserError if something else than a folder is in its place."""
  for place in (whole, *whole.parents):
    try:
      status = place.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
      if place.is_symlink():
        raise errors.UserError(
          f'{shown}: {place} is a link to what is not there. Remove the link, '
          'or choose another folder.'
        ) from error
      continue
    except OSError as error:
      raise errors.UserError(
        f'{shown} cannot be used: {error.strerror}. Choose another folder.'
      ) from error
    errors.require(
      stat.S_ISDIR(status.st_mode),
      f'{shown}: {place} is no folder. Choose another one.',
    )
    errors.require(
      os.access(place, mode),
      f'{shown}: permission denied by {place}. Allow it, or choose another '
      'folder.',
    )
    return
